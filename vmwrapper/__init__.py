"""Runs an ordinary program inside a virtual machine as a BOINC job."""

__version__ = "0.1.0"

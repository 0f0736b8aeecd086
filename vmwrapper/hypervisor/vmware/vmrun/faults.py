"""What vmrun's complaints mean, and so what is to be done about them.

vmrun prints the texts of VIX's error codes after "Error: ", to its standard output, and tells nothing by its exit
status. Source: the error codes of the VIX API, whose texts these are; what users of vmrun report of it. None was met
with a real VMware product.
"""

import re
from enum import Enum


class Fault(Enum):
    """Why vmrun did not do what it was told; the values say what is to be done, or what keeps it from being done."""

    BUSY = "another task of VMware's has the machine just now"
    NO_SUCH_PRODUCT = "install VMware Workstation, or name the product that is there"
    NO_MODULES = "VMware's kernel modules are not loaded: run `vmware-modconfig --console --install-all` as root"
    NO_LICENSE = "start VMware once by hand, and accept or enter its licence"
    NO_VIRTUALIZATION = "allow virtualization in the firmware's set-up, or turn off what keeps the processor for itself"
    NO_MEMORY = "VMware finds too little memory free on this computer"
    NO_SPACE = "make room on this computer's disk"
    UNSUPPORTED = "this product of VMware's can't do it"
    NOT_RUNNING = "the machine is powered off"
    RUNNING = "the machine is powered on, or was when VMware last looked"
    PAUSED = "the machine is paused"
    IN_USE = "another program, perhaps VMware's own window, has a file of the machine open"
    NO_MACHINE = "a file of the machine is not there, or is damaged"
    NO_SNAPSHOT = "there is no such snapshot"
    SNAPSHOT_EXISTS = "there is a snapshot of that name"
    NO_TOOLS = "VMware Tools do not run in the guest, or not yet"
    LOGIN_REFUSED = "the guest does not let this user log in"
    FILE_MISSING = "there is no such file"
    FORBIDDEN = "permissions do not allow it"
    GUEST_FAILED = "the guest's program failed"
    OTHER = "VMware does not say what helps"

    @property
    def passes(self) -> bool:
        """Whether the same may succeed in a moment: nothing was done, and nothing stays so by itself."""
        return self is Fault.BUSY


TABLE = (
    # the first that fits
    (r"invalid user name or password for the guest|insufficient permissions? in the guest", Fault.LOGIN_REFUSED),
    (r"must be logged in to the guest|authentication failure|the guest user|anonymous guest", Fault.LOGIN_REFUSED),
    (r"VMware Tools|tools are not (running|installed)|guest operations? (agent|are not)", Fault.NO_TOOLS),
    (
        r"guest program exited with non-?zero|program was not started|failed to (run|start) the program",
        Fault.GUEST_FAILED,
    ),
    (r"not enough (disk )?space|insufficient disk space|disk is full|no space left|out of disk", Fault.NO_SPACE),
    (r"not enough (physical )?memory|insufficient (host )?memory|could not allocate .*memory", Fault.NO_MEMORY),
    (r"specified version was not found|service type .* not found|no VMware .* installed", Fault.NO_SUCH_PRODUCT),
    (r"kernel modules?|could not open /dev/vmmon|/dev/vmmon", Fault.NO_MODULES),
    (r"licen[cs]e|EULA", Fault.NO_LICENSE),
    (r"VT-x|AMD-V|Hyper-V|Device/Credential Guard|hardware virtualization", Fault.NO_VIRTUALIZATION),
    (r"is not supported|unrecognized command|not available in this product", Fault.UNSUPPORTED),
    (r"(is|was) not powered on|is not running|should be powered on|must be powered on", Fault.NOT_RUNNING),
    (r"is paused|while paused", Fault.PAUSED),
    (r"is (already )?(running|powered on)|should not be powered on|must be powered off", Fault.RUNNING),
    (r"snapshot with the name already exists|snapshot name .*(exists|not unique)", Fault.SNAPSHOT_EXISTS),
    (r"snapshot does not exist|invalid snapshot name|no such snapshot|snapshot .*not found", Fault.NO_SNAPSHOT),
    (r"object is busy|is busy|another (task|operation)|try again|operation was canceled", Fault.BUSY),
    (r"already in use|failed to lock the file|is locked", Fault.IN_USE),
    (r"cannot open VM|virtual machine cannot be found|not a valid virtual machine", Fault.NO_MACHINE),
    (r"configuration file|cannot open the (disk|configuration)|content ID of the parent", Fault.NO_MACHINE),
    (r"file .*(corrupt|damaged)|unable to open .*snapshot", Fault.NO_MACHINE),
    (r"file was not found|file does not exist|directory does not exist|does not exist", Fault.FILE_MISSING),
    (r"permission|access (is |was )?denied|read-only", Fault.FORBIDDEN),
)
_ERROR = re.compile(r"^(?:Error|Unable to connect to host)\b[:.]?[ \t]*(.*)$", re.MULTILINE)
_PATHS = re.compile(r"(?<=[: '\"])(?:/|[A-Za-z]:\\|\\\\)[^\n'\"]*|'[^'\n]*'")


def complaint(said: str) -> str | None:
    """What vmrun complained of in all that it printed, or None: its exit status does not tell."""
    lines = _ERROR.findall(said)
    return "\n".join(line.strip() for line in lines) if lines else None


def fault(said: str) -> Fault:
    """What a complaint means."""
    texts = said if "/dev/" in said else _PATHS.sub("", said)  # which strangers have given
    return next((meant for text, meant in TABLE if re.search(text, texts, re.IGNORECASE)), Fault.OTHER)

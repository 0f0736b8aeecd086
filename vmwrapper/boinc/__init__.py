"""BOINC's application API for asyncio programs: all that the client and an app say to each other.

    api = Client(Path())                      # the slot is the current directory; Standalone(...) without a client

    async def main() -> None:
        async with beside(obey(api.requests())), api.episode():
            ...                               # api.init_data, api.resolve(name), api.report(Status(...))

    try:
        asyncio.run(main())
    except VmwrapperError as error:           # what obey() raises for a request to quit or abort is one
        sys.exit(api.end(error))
    sys.exit(api.end(None))

`api` has the contract, `client` and `standalone` keep it; each other file is one part of the protocol.
"""

"""`python -m manta.serving.lookup CATALOG [--port N]`: the door alone, without Ray and without keys.

CATALOG is a file that applying the features has written: `manta run features` names it. Whoever reaches the
port may read and push; so it listens on the loopback interface only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvicorn

from manta.definitions import Lookup
from manta.features.catalog import read_catalog
from manta.serving.asgi import Asgi
from manta.serving.lookup.door import Door


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m manta.serving.lookup", description=__doc__)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--port", type=int, default=6566)
    parser.add_argument("--lake", help="the folder of the datasets, for what is pushed offline")
    given = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))  # on-demand functions are the project's
    catalog = read_catalog(given.catalog)
    door = Door(Lookup(), catalog.project, None, given.lake)
    door.load(given.catalog.stem, catalog)
    uvicorn.run(
        Asgi(door),
        host="127.0.0.1",
        port=given.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,  # longer than clients keep an idle connection
    )


main()

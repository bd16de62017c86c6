"""Kills and signals runs at random moments, lets them resume, and compares them with runs that nothing disturbed.

    python tests/soak/run.py --kills 50 --seed 0 --output soak.json

Takes less than an hour on two quiet cores; needs Linux. The same command goes on after the last case that is in
`--output`. Folders of runs that differ are left in `--folder`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import cases
from forks import import_libraries
from pictures import Hub, make_data
from table import table


def main() -> int:
    """Run the cases that are left; 1 if any run differs or anything is left behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills and signals in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--folder", type=Path, help="where runs are made; a temporary folder if not given")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, instead of all until `--kills`")
    given = parser.parse_args()
    former = json.loads(given.output.read_text()) if given.output.exists() else {"seed": given.seed, "cases": []}
    if former["seed"] != given.seed:
        parser.error(f"`{given.output}` holds results of seed {former['seed']}.")
    done = former["cases"]
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="0", TOKENIZERS_PARALLELISM="false")
    make_data(folder / "data")
    hub = Hub(folder / "data")
    os.environ.update(hub.environment(folder / "home"))
    import_libraries()
    from suffering import suffer  # it imports what reads the Hub's address

    try:
        for case in cases(given.seed, most_blows=4):
            if given.only is None and sum(one["kills"] + one["signals"] for one in done) >= given.kills:
                break
            if given.only is not None and case.number > max(given.only):
                break
            known = any(one["case"] == case.number for one in done)
            if known or (given.only is not None and case.number not in given.only):
                continue
            started = time.monotonic()
            place = folder / f"case-{case.number}"
            shutil.rmtree(place, ignore_errors=True)
            one = {**suffer(case, place, folder / "data", hub), "seconds": round(time.monotonic() - started)}
            done = sorted([*done, one], key=lambda one: one["case"])
            given.output.write_text(json.dumps({"seed": given.seed, "cases": done}, indent=1) + "\n")
            print(json.dumps(one), flush=True)  # noqa: T201
            if not one["differences"]:
                shutil.rmtree(place)
    finally:
        hub.close()
    bad = [one for one in done if one["differences"]]
    print(table(done))  # noqa: T201
    if given.folder is None and not bad:
        shutil.rmtree(folder)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

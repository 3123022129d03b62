"""python -m medjax.ingest: hospital files and labels to a data set."""

import sys

from medjax.config import parse_command
from medjax.data.processes import hear_stops
from medjax.ingest.settings import IngestSettings

_KINDS = ("ecg",)

_DESCRIPTION = """Read ECG files of any format into a checked data set that medjax.train and medjax.eval take.

Leads come in standard order and millivolts; missing and flat ones are marked. One bad file never ends the run: what was
refused, and why, what was passed over, copies of recordings, and patients that appear twice are in OUT/report.html. The
folder appears when it is complete; where no record can be read, OUT.refused.jsonl says why.

Splits are by patient, by a hash of the identifier: a named patient never moves, whatever data is added later. A record
without a patient is keyed by its recording, and may move when a copy of it is added. Shares are not stratified; folds
are, and belong to one data set. Identifiers of two hospitals may collide: give each its --institution."""

_EPILOG = """examples:
  python -m medjax.ingest ecg --source export/ --out data/hospital
  python -m medjax.ingest ecg --source files.csv --labels labels.csv --out data/hospital
  python -m medjax.ingest ecg --source export/ --labels echo.csv --label_columns low_ef,ef --out data/lvsd
  python -m medjax.ingest ecg --source export/ --institution north --out data/north
  python -m medjax.ingest ecg --source /nfs/export --out /nfs/set --beam.runner FlinkRunner \
      --beam.options=flink_master=HOST:8081,parallelism=64    (every worker sees both folders)

Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong, 75 stopped by Ctrl-C or SIGTERM."""


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in _KINDS:
        argv = argv[1:]
    elif not {"--help", "-h"} & set(argv):
        got = argv[0] if argv else "nothing"
        print(
            f"medjax.ingest: got {got}, expected the kind of data first: {', '.join(_KINDS)}; write "
            "python -m medjax.ingest ecg --source … --out …",
            file=sys.stderr,
        )
        return 2
    settings = parse_command(IngestSettings, argv, prog="medjax.ingest ecg", description=_DESCRIPTION, epilog=_EPILOG)
    try:
        from medjax.ingest.run import ingest  # only now: --help must not wait for it

        ingest(settings, say=lambda line: print(line, flush=True), progress=True)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"medjax.ingest: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medjax.ingest: stopped; nothing was written. The same command starts again.", file=sys.stderr)
        return 75
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"medjax.ingest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    hear_stops()
    sys.exit(main())

"""The table of a GPU check, and what pages say of it, made from its JSON file alone."""

from collections.abc import Iterator, Mapping
from typing import Any

Row = tuple[str, str, str]
_SHOWN_FAILURES = 20


def table(kept: Mapping[str, Any]) -> str:
    """One Markdown table of everything that the file holds."""
    lines = ["| part | what | result |", "|---|---|---|"]
    for part, what, result in _rows(kept):
        lines.append(f"| {part} | {what} | {result} |")
    return "\n".join(lines)


def in_short(kept: Mapping[str, Any]) -> str:
    """A sentence for the README."""
    results = {name: step.get("result") or {} for name, step in kept["steps"].items()}
    counts = results.get("tests", {}).get("counts", {})
    passed, failed = (counts.get(outcome, 0) for outcome in ("passed", "failed"))
    text = f"On {kept['machine']['device']}: {passed} tests for GPUs pass, {failed} fail"
    speeds = [
        f"{run['images_per_second']:,.0f} images a second{' compiled' if name == 'compiled' else ''}"
        for name, run in results.get("directpred", {}).items()
        if run.get("images_per_second")
    ]
    if speeds:
        text += f"; DirectPred trains on {kept['steps']['directpred']['stamp']['dataset']} at {', '.join(speeds)}"
    return f"{text}."


def _rows(kept: Mapping[str, Any]) -> Iterator[Row]:
    machine = kept["machine"]
    versions = machine["versions"]
    yield (
        "machine",
        machine["device"],
        f"{machine['cpu']}, {machine['cores']} cores, driver {machine['driver'] or '-'}",
    )
    names = [name for name in ("torch", "torchvision", "timm", "lightly") if name in versions]
    yield "machine", "versions", ", ".join(f"{name} {versions[name]}" for name in names)
    for name, step in kept["steps"].items():
        where = _where(step["stamp"], {**machine, "torch": versions["torch"], "code": kept["code"].get(name)})
        if step["stamp"].get("dataset"):
            yield f"{name}{where}", "data set", step["stamp"]["dataset"]
        if step["status"] != "done":
            yield f"{name}{where}", step["status"], _cell(step.get("reason", ""))
        if name in _ROWS:  # a file of another version may have other steps
            yield from _ROWS[name](f"{name}{where}", step.get("result") or {})


def _where(stamp: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What a step was done with, if not with what the table names."""
    differs = [f"{name} {stamp[name]}" for name in ("device", "torch") if stamp[name] != now[name]]
    differs += ["other code"] if stamp["code"] != now["code"] else []
    return f" ({', '.join(differs)})" if differs else ""


def _of_tests(part: str, result: Mapping[str, Any]) -> Iterator[Row]:
    counts = result.get("counts", {})
    yield part, "tests", ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "none"
    failures = result.get("failures", [])
    for failure in failures[:_SHOWN_FAILURES]:
        yield part, f"`{failure['test']}`", _cell(failure["message"])
    if len(failures) > _SHOWN_FAILURES:
        yield part, "more failures", str(len(failures) - _SHOWN_FAILURES)


def _of_steps(part: str, result: Mapping[str, Any]) -> Iterator[Row]:
    if result:
        yield part, "compared with lightly", "yes" if result["lightly"] else "no: lightly is not installed"
    for row in result.get("rows", ()):
        cell = f"{row['step ms']:.3g} ms, {row['x necessary']:.2f} of the necessary passes"
        if "lightly x" in row:
            cell += f", lightly {row['lightly x']:.2f}"
        if row.get("waits for the device", "no") != "no":
            cell += f"; waits: {_cell(row['waits for the device'])}"
        yield part, f"`{row['method']}`, {row['precision'].replace('no', 'float32')}", cell


def _of_predictor(part: str, result: Mapping[str, Any]) -> Iterator[Row]:
    for row in result.get("rows", ()):
        cell = f"iterations {row['iterations ms']:.3g} ms, eigenvectors {row['eigenvectors ms']:.3g} ms"
        yield part, f"dim {row['dim']}", f"{cell}; largest error {row['largest error']:.1e}"


def _of_data(part: str, result: Mapping[str, Any]) -> Iterator[Row]:
    for row in result.get("results", ()):
        yield part, f"{row['part']}: {row['what']}", f"{row['value']:,.0f} {row['unit']}"


def _of_directpred(part: str, result: Mapping[str, Any]) -> Iterator[Row]:
    for name, run in result.items():
        if not run["step"]:
            yield part, name, _cell(run.get("reason", "not begun"))
            continue
        cell = f"step {run['step']:,} of {run['num_steps']:,}"
        for key, text in (("images_per_second", "{:,.0f} images/s"), ("loss", "loss {:.4g}"), ("knn", "k-NN {:.2%}")):
            if run.get(key) is not None:
                cell += f", {text.format(run[key])}"
        for one in run["evaluation"]:
            cell += f", at the end {one['name']} {one['value']:.2%}"
        yield part, name, cell + (f"; {_cell(run['reason'])}" if run.get("reason") else "")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:300]


_ROWS = {
    "tests": _of_tests,
    "step": _of_steps,
    "predictor": _of_predictor,
    "data": _of_data,
    "directpred": _of_directpred,
}

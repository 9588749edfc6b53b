"""The part of README that shows a recorded run: made from its file, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from . import drawings, goals, measures
from .cells import ENOUGH, NONE, SHORT, Column, systems_table
from .lines import BadRun, Run, read
from .page import summary

BEGIN = "<!-- bench run: begin{} -->"
END = "<!-- bench run: end -->"
_PART = re.compile(
    r"<!-- bench run: begin *(?P<file>[^ ]*) *-->\n.*?<!-- bench run: end -->", re.DOTALL
)
_SHOWN = ("recall", "filters", "latency")
"""Plots that README shows; the page has all."""


def part(run: Run, path: Path, readme: Path) -> str:
    """The part with its markers, for the run that was read from `path`."""
    place = path.resolve().relative_to(readme.resolve().parent)
    page = place.with_suffix(".md").as_posix()
    titles = {drawings.PLOTS[name][0] for name in _SHOWN}
    there = drawings.there(path.parent, path.stem)
    images = [
        f"![{title}]({place.with_name(name).as_posix()})\n"
        for title, name in there.items()
        if title in titles
    ]
    dataset, machine = run.about["dataset"], run.about["machine"]
    text = [
        BEGIN.format(f" {place.as_posix()}"),
        f"`{run.about['command']}` ({run.about['date'][:10]}; {dataset['name']},"
        f" {dataset['rows']:,} x {dataset['dimension']}, {machine['cores']} cores of {machine['cpu']};"
        f" medians of {run.about['rounds']} rounds in turn, recall measured; [the whole page]({page}) has"
        " spreads, versions, settings, durability, and what was skipped and failed):\n",
        systems_table(run, _columns(run), spread=False),
        f"Bold: the best database. {SHORT}: the recall asked for ({min(run.about['target_recall'])} where a title of"
        f" queries names none) is not reached to within {ENOUGH}. {NONE}: not"
        " measured, or the system cannot. Italics: limits, which are no database.\n",
        summary(run, goals.beside(run), goals.places(run)),
        *images,
        END,
    ]
    return "\n".join(one for one in text if one)


def _columns(run: Run) -> list[Column]:
    """As the overview of the page, without what two columns would say alike."""
    left = ("callers=32", "callers=8 recall=0.99", "100 recall=0.99")
    return [one for one in measures.usual(run) if not one.case.startswith(left)]


def rewrite(readme: Path, run: Run, path: Path) -> None:
    """Puts the run's part between the markers. Raises BadRun where README has no such markers, or the file
    lies elsewhere than below its folder."""
    text = readme.read_text(encoding="utf-8")
    if len(_PART.findall(text)) != 1:
        raise BadRun(f"{readme.name} needs the lines {BEGIN.format('')} and {END}, once each")
    if readme.resolve().parent not in path.resolve().parents:
        raise BadRun(f"{path} lies outside of the folder of {readme.name}, which cannot show it")
    made = part(run, path, readme)
    readme.write_text(_PART.sub(lambda _: made, text), encoding="utf-8")


def stale(readme: Path) -> str | None:
    """What is wrong with README's part: not what its file gives. None where it is, or shows no run yet."""
    found = _PART.search(readme.read_text(encoding="utf-8"))
    if found is None:
        return f"{readme.name} has no part of a run between {BEGIN.format('')} and {END}"
    if not found["file"]:
        words = found[0].removeprefix(BEGIN.format("")).removesuffix(END).strip()
        return f"{readme.name} shows a run and names no file" if words else None
    path = readme.parent / found["file"]
    if found[0] != part(read(path), path, readme):
        return f"{readme.name} shows something else than {found['file']}: python -m bench report --readme"
    return None

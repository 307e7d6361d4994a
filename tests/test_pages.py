"""The docopt text, --help and the manual page say the same, and the pages are well made."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import docopt
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path.name for path in (ROOT / "bin").iterdir())
PAGES = sorted((ROOT / "man").iterdir())
Flags = frozenset[str]  # the spellings of one option: {"-b", "--bind-address"}

page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_program = pytest.mark.parametrize("program", PROGRAMS)


def page_for(program: str) -> Path:
    [page] = [page for page in PAGES if page.stem == program and page.suffix in (".1", ".8")]
    return page


def sections(page: Path) -> dict[str, list[str]]:
    """The lines below each .Sh of a page."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in page.read_text().splitlines():
        if line.startswith(".Sh "):
            lines = found.setdefault(line[4:].strip().strip('"'), [])
        else:
            lines.append(line)
    return found


def flags(line: str) -> Flags:
    """What the Fl macros of an mdoc line say: `Fl b Ar address , Fl -bind-address` gives both."""
    spellings: set[str] = set()
    taking = False
    for word in line.replace(r"\-", "-").split():
        if word in ("Fl", "Ar", "Ns", "Op", "Oo", "Oc", "Cm", "Sm", "Xo", "Xc", "It"):
            taking = word == "Fl"
        elif taking and re.fullmatch(r"-?[\w-]+", word):
            spellings.add(f"-{word}")
    return frozenset(spellings)


def page_options(page: Path) -> dict[Flags, tuple[bool, str]]:
    """The option items of a page: do they take an argument, and what is said of them."""
    found: dict[Flags, tuple[bool, str]] = {}
    option: Flags = frozenset()
    for line in page.read_text().splitlines():
        if line.startswith((".It", ".El", ".Sh")):
            option = flags(line) if line.startswith(".It Fl") else frozenset()
            if option:
                assert option not in found, f"{page.name} has {set(option)} twice"
                found[option] = (" Ar " in line, "")
        elif option:
            takes, text = found[option]
            found[option] = (takes, f"{text}{line}\n")
    return found


def docopt_options(text: str) -> list[docopt.Option]:
    """The options that docopt itself sees in a usage text, those of the usage lines included."""
    options: list[docopt.Option] = docopt.parse_defaults(text)
    docopt.parse_pattern(docopt.formal_usage(docopt.printable_usage(text)), options)
    return options


def names(option: docopt.Option) -> Flags:
    return frozenset(filter(None, (option.short, option.long)))


def text_of(program: str) -> str:
    module = importlib.import_module("muonsocks.tools." + program.replace("-", "_"))
    assert module.__doc__
    return module.__doc__.strip()


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "bin" / program, *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


@each_program
def test_help_is_the_docopt_text(program: str) -> None:
    done = run(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == text_of(program) + "\n"


@each_program
def test_options_of_page_and_text_are_the_same(program: str) -> None:
    said = {names(option): option.argcount > 0 for option in docopt_options(text_of(program))}
    page = {option: takes for option, (takes, _) in page_options(page_for(program)).items()}
    assert said
    assert page == said


@each_program
def test_defaults_of_page_and_text_are_the_same(program: str) -> None:
    page = page_options(page_for(program))
    for option in docopt_options(text_of(program)):
        if option.argcount and option.value is not None:
            said = page[names(option)][1]
            assert re.search(rf"\b{re.escape(str(option.value))}\b", said), (option, said)


@each_program
def test_synopsis_names_the_program(program: str) -> None:
    # To docopt the first word is the program, and where it comes again another usage begins.
    assert docopt.printable_usage(text_of(program)).split()[:2] == ["Usage:", program]
    shown = "\n".join(sections(page_for(program))["SYNOPSIS"])
    assert set(re.findall(r"^\.Nm\b *(\S*)", shown, re.M)) <= {program, ""}


@each_program
def test_synopsis_has_only_options_that_are_explained(program: str) -> None:
    page = page_for(program)
    known = frozenset().union(*page_options(page))
    for line in sections(page)["SYNOPSIS"]:
        assert flags(line) <= known


@page_of
def test_page_is_named_as_its_file(page: Path) -> None:
    text = page.read_text()
    name, section = page.stem, page.suffix[1:]
    assert re.findall(r"^\.Dt (.*)$", text, re.M) == [f"{name.upper()} {section}"]
    assert re.findall(r"^\.Nm (\S+)$", "\n".join(sections(page)["NAME"]), re.M) == [name]


@page_of
def test_page_has_its_sections(page: Path) -> None:
    needed = ["NAME", "DESCRIPTION"]
    if page.suffix in (".1", ".8"):
        needed = ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "EXAMPLES"]
    there = sections(page)
    assert [name for name in there if name in needed] == needed  # and in the usual order
    for name in needed:
        assert "".join(there[name]).strip()


@page_of
def test_page_is_clean(page: Path) -> None:
    mandoc = shutil.which("mandoc")
    if not mandoc:
        pytest.skip("no mandoc here")
    done = subprocess.run([mandoc, "-Tlint", "-W", "warning", page], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@page_of
def test_pages_that_are_referred_to_exist(page: Path) -> None:
    ours = {path.name for path in PAGES}
    for name, section in re.findall(r"\bXr (\S+) (\d)", page.read_text()):
        if name.startswith(("muonsocks", "socks-")) or name in PROGRAMS:
            assert f"{name}.{section}" in ours


def test_every_program_has_one_page() -> None:
    assert PROGRAMS
    assert {page_for(program) for program in PROGRAMS} == {
        page for page in PAGES if page.suffix in (".1", ".8")
    }


SAMPLE_PAGE = """\
.Sh DESCRIPTION
.Bl -tag -width Ds
.It Fl b Ar address , Fl -bind-address Ns = Ns Ar address
Leave from
.Ar address .
.It Fl \\-idle\\-timeout Ns = Ns Ar seconds
The default is 900.
.It Fl 4 , Fl -ipv4
.El
"""
SAMPLE_TEXT = """\
Usage: sample [options] [--refuse REASON]

Options:
  -b ADDR, --bind-address ADDR  Leave from ADDR
  --idle-timeout=SECONDS        So long [default: 900]
  -4, --ipv4                    No IPv6
"""


def test_the_readers_of_options(tmp_path: Path) -> None:
    page = tmp_path / "sample.1"
    page.write_text(SAMPLE_PAGE)
    bind, idle = frozenset({"-b", "--bind-address"}), frozenset({"--idle-timeout"})
    assert page_options(page) == {
        bind: (True, "Leave from\n.Ar address .\n"),
        idle: (True, "The default is 900.\n"),
        frozenset({"-4", "--ipv4"}): (False, ""),
    }
    said = {names(option): option.argcount for option in docopt_options(SAMPLE_TEXT)}
    assert said == {bind: 1, idle: 1, frozenset({"-4", "--ipv4"}): 0, frozenset({"--refuse"}): 0}


def test_the_page_of_the_library_has_every_name() -> None:
    text = (ROOT / "man" / "muonsocks-client.3").read_text()
    classic = importlib.import_module("muonsocks.client.rsocks")
    calls = [name for name in vars(classic) if re.match("SOCKS|R[a-z]+$|OutOf", name)]
    calls.remove("Reached")  # is of no use to a program
    assert len(calls) == 9
    for name in [*importlib.import_module("muonsocks.client").__all__, *calls]:
        assert re.search(rf"\b{name}\b", text), name

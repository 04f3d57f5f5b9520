"""Skills: folders with instructions that the policy reads when it needs them.

A skill is a folder with a SKILL.md: front matter between two lines `---` with `name` and `description`, then the
instructions. The policy is told names and descriptions; `read_skill` gives it the instructions and `read_skill_file`
any other text file of the folder. A job reads its skills once, files included: what an episode is given is what the
digest says, whatever happens to the folder meanwhile, and nothing outside of it can be reached.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from rollout.agents.local_tools import LocalTools
from rollout.errors import ToolError, UserError, nearest
from rollout.sections import PathText, Section

FILE = "SKILL.md"
MOST_BYTES = 8 * 2**20
"""What the files of one skill may hold together: every runner keeps them in memory."""

log = logging.getLogger(__name__)


class SkillsConfig(Section):
    """What the policy may read up."""

    skills: tuple[PathText, ...] = ()
    """Folders of skills, each with a SKILL.md."""
    skill_dirs: tuple[PathText, ...] = ()
    """Folders whose subfolders with a SKILL.md are skills."""
    strict_skills: bool = True
    """A malformed skill refuses the job; otherwise it is left out with a warning."""


@dataclass(frozen=True, slots=True)
class Skill:
    """One skill, read."""

    name: str
    description: str
    body: str
    """The instructions: SKILL.md below its front matter."""
    folder: str
    """Where it was read from."""
    digest: str
    """SHA-256 over the paths and contents of all its files, SKILL.md included."""
    files: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """The other files by their path in the folder; None for what is no text."""


@dataclass(frozen=True, slots=True)
class Skills:
    """All skills of a job, in the order of their names."""

    skills: tuple[Skill, ...] = ()

    @property
    def digest(self) -> str:
        """One digest over all of them: a part of the environment's version."""
        told = "".join(f"{skill.name}\0{skill.digest}\n" for skill in self.skills)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def text(self) -> str:
        """What the system message says of them; empty when there are none."""
        if not self.skills:
            return ""
        listed = "\n".join(f"- {skill.name}: {skill.description}" for skill in self.skills)
        return (
            "## Skills\n\nThere are instructions for the following kinds of work. "
            f"Before such work, read them with read_skill.\n\n{listed}"
        )

    def tools(self) -> LocalTools:
        """`read_skill`, and `read_skill_file` where a skill has files; none without skills."""
        if not self.skills:
            return LocalTools(())
        if not any(skill.files for skill in self.skills):
            return LocalTools.of(self._read_skill())
        return LocalTools.of(self._read_skill(), self._read_skill_file())

    def _read_skill(self) -> Any:
        async def read_skill(seconds: float, name: str) -> str:
            """Read the instructions of a skill.

            Args:
                name: The skill's name.
            """
            skill = self._named(name)
            files = f"\n\nFiles, for read_skill_file: {', '.join(skill.files)}" if skill.files else ""
            return skill.body + files

        return read_skill

    def _read_skill_file(self) -> Any:
        async def read_skill_file(seconds: float, name: str, path: str) -> str:
            """Read one of a skill's files.

            Args:
                name: The skill's name.
                path: The file's path in the skill's folder.
            """
            skill, place = self._named(name), posixpath.normpath(path)
            if place not in skill.files:
                known = nearest(place, skill.files) if skill.files else "; it has no files"
                raise ToolError(f"skill '{name}' has no file '{path}'{known}")
            if (content := skill.files[place]) is None:
                raise ToolError(f"'{path}' of skill '{name}' is no text file")
            return content

        return read_skill_file

    def _named(self, name: str) -> Skill:
        known = {skill.name: skill for skill in self.skills}
        if name not in known:
            raise ToolError(f"there is no skill '{name}'{nearest(name, known)}")
        return known[name]


def load_skills(config: SkillsConfig, key: str = "agent") -> Skills:
    """Reads all skills that the section `key` names; reads files, so it is called once, before anything is started.

    Raises UserError for a folder without skills, two skills of one name and, unless `strict_skills` is off, for a
    malformed one.
    """
    found: dict[str, Skill] = {}
    for folder in dict.fromkeys(_folders(config, key)):
        try:
            skill = read_folder(folder)
        except UserError as error:
            if config.strict_skills:
                raise
            log.warning("left out: %s", error)
            continue
        if (other := found.get(skill.name)) is not None:
            raise UserError(f"{folder / FILE}: name: '{skill.name}' is taken by {Path(other.folder) / FILE}")
        found[skill.name] = skill
    return Skills(tuple(found[name] for name in sorted(found)))


def read_folder(folder: Path) -> Skill:
    """One skill. Raises UserError, one line that names the file and what was expected there."""
    name, description, body = _parsed(folder / FILE)
    digest, total = hashlib.sha256(), 0
    files: dict[str, str | None] = {}
    for path in _files(folder):
        place = path.relative_to(folder).as_posix()
        content = _bytes(path)
        if (total := total + len(content)) > MOST_BYTES:
            raise UserError(f"{folder}: a skill's files hold {MOST_BYTES // 2**20} MiB at most; found more")
        digest.update(f"{place}\0{len(content)}\0".encode() + content)
        if place != FILE:
            files[place] = _text(content)
    return Skill(name, description, body, str(folder), digest.hexdigest(), files)


def _folders(config: SkillsConfig, key: str) -> Iterator[Path]:
    for named in config.skills:
        folder = Path(named).resolve()
        if not (folder / FILE).is_file():
            raise UserError(f"{key}.skills: {named}: expected a folder with a {FILE}")
        yield folder
    for named in config.skill_dirs:
        folder = Path(named).resolve()
        if not folder.is_dir():
            raise UserError(f"{key}.skill_dirs: there is no folder {named}")
        below = sorted(path.parent for path in folder.glob(f"*/{FILE}"))
        if not below:
            raise UserError(f"{key}.skill_dirs: {named}: expected folders with a {FILE} in it, found none")
        yield from below


def _parsed(file: Path) -> tuple[str, str, str]:
    text = _text(_bytes(file))
    if text is None:
        raise UserError(f"{file}: expected UTF-8 text")
    lines = text.removeprefix("\ufeff").splitlines()
    ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    if len(ends) < 2 or ends[0] != 0:
        raise UserError(f"{file}: expected front matter between two lines '---' at the top")
    try:
        told: Any = yaml.safe_load("\n".join(lines[1 : ends[1]]))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: front matter: expected YAML with name and description; {reason}") from None
    if not isinstance(told, dict):
        raise UserError(f"{file}: front matter: expected name and description, found {type(told).__name__}")
    front = cast(dict[str, Any], told)
    body = "\n".join(lines[ends[1] + 1 :]).strip()
    if not body:
        raise UserError(f"{file}: expected instructions below the front matter, found nothing")
    return _line(file, front, "name"), _line(file, front, "description"), body


def _line(file: Path, front: dict[str, Any], key: str) -> str:
    value = front.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if value is None else repr(value)
        raise UserError(f"{file}: {key}: expected text, found {found}")
    return " ".join(value.split())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts):
            continue  # what editors, version control and Python leave there is not the skill's
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: leads out of the skill's folder")
        if path.is_file():
            yield path


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None

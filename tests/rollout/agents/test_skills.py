"""Skills: read once, told by name, read when needed, and never anything outside of their folders."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from rollout.agents.skills import FILE, Skills, SkillsConfig, load_skills
from rollout.errors import UserError
from rollout.trajectory import ToolCall, ToolResult


def write(folder: Path, name: str = "tides", body: str = "Look at the moon.", **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(f"---\nname: {name}\ndescription: How to tell {name}\n---\n\n{body}\n")
    for place, content in files.items():
        (folder / place.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (folder / place.replace("__", "/")).write_text(content)
    return folder


def loaded(*folders: Path, **config: Any) -> Skills:
    return load_skills(SkillsConfig(skills=tuple(str(folder) for folder in folders), **config))


async def call(skills: Skills, tool: str, **arguments: Any) -> ToolResult:
    tools = skills.tools()
    try:
        return await tools.call(ToolCall("c1", tool, json.dumps(arguments)), 5)
    finally:
        await tools.close()


async def test_a_skill_is_told_by_name_and_read_when_needed(tmp_path: Path) -> None:
    skills = loaded(write(tmp_path / "b", "winds"), write(tmp_path / "a", "tides"))
    assert [skill.name for skill in skills.skills] == ["tides", "winds"]
    assert "- tides: How to tell tides\n- winds: How to tell winds" in skills.text
    assert "moon" not in skills.text
    assert [spec.name for spec in skills.tools().specs] == ["read_skill"]
    assert skills.tools().specs[0].parameters["required"] == ["name"]
    assert (await call(skills, "read_skill", name="tides")).content == "Look at the moon."
    answer = await call(skills, "read_skill", name="tide")
    assert answer.error is not None and "did you mean 'tides'?" in answer.content


def test_folders_of_skills_are_searched_and_a_folder_named_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "all" / "one", "one")
    write(tmp_path / "all" / "two", "two")
    (tmp_path / "all" / "notes").mkdir()
    config = SkillsConfig(skills=(str(tmp_path / "all" / "one"),), skill_dirs=(str(tmp_path / "all"),))
    assert [skill.name for skill in load_skills(config).skills] == ["one", "two"]


def test_no_skills_are_no_text_and_no_tools() -> None:
    assert Skills().text == ""
    assert load_skills(SkillsConfig()).tools().specs == ()


async def test_the_files_of_a_skill_are_read_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    folder = write(tmp_path / "a", "tides", tables__may_md="high at noon", _git__config="x")
    (folder / "moon.png").write_bytes(b"\x89PNG\xff")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    skills = loaded(folder)
    assert "Files, for read_skill_file: _git/config, moon.png, tables/may_md" in (
        await call(skills, "read_skill", name="tides")
    ).content.replace("\n", " ")
    for place in ("tables/may_md", "./tables/../tables/may_md"):
        assert (await call(skills, "read_skill_file", name="tides", path=place)).content == "high at noon"
    for place in ("../secret", str(tmp_path / "secret"), "tables/../../secret", ".cache/x", ""):
        answer = await call(skills, "read_skill_file", name="tides", path=place)
        assert answer.error is not None and "has no file" in answer.error and "password" not in answer.content
    assert "is no text file" in (await call(skills, "read_skill_file", name="tides", path="moon.png")).content


async def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    folder = write(tmp_path / "a")
    (folder / "notes.md").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"notes\.md: leads out of the skill's folder"):
        loaded(folder)


async def test_what_was_read_at_the_start_is_what_an_episode_gets(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", notes_md="old")
    skills: Skills = pickle.loads(pickle.dumps(loaded(folder)))
    (folder / "notes_md").write_text("new")
    assert (await call(skills, "read_skill_file", name="tides", path="notes_md")).content == "old"


def test_the_digest_follows_every_file_and_nothing_else(tmp_path: Path) -> None:
    one, two = loaded(write(tmp_path / "a", notes_md="x")), loaded(write(tmp_path / "b", notes_md="x"))
    assert one.digest == two.digest
    write(tmp_path / "b", notes_md="y")
    assert loaded(tmp_path / "b").digest != one.digest
    write(tmp_path / "b", notes_md="x", body="Look at the sea.")
    assert loaded(tmp_path / "b").digest != one.digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Just text.", "expected front matter between two lines '---' at the top"),
        ("---\nname: a\n", "expected front matter between two lines '---' at the top"),
        ("---\nname: [\n---\nx", "front matter: expected YAML"),
        ("---\n- a\n---\nx", "front matter: expected name and description, found list"),
        ("---\nname: a\n---\nx", "description: expected text, found nothing"),
        ("---\nname: 7\ndescription: b\n---\nx", "name: expected text, found 7"),
        ("---\nname: ''\ndescription: b\n---\nx", "name: expected text, found ''"),
        ("---\nname: a\ndescription: b\n---\n", "expected instructions below the front matter, found nothing"),
    ],
)
def test_vector_15_a_malformed_skill_is_a_config_error(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / FILE).write_text(text)
    with pytest.raises(UserError) as caught:
        loaded(tmp_path / "a")
    assert str(caught.value).startswith(f"{tmp_path / 'a' / FILE}: ")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    good = write(tmp_path / "b", "good")
    assert [skill.name for skill in loaded(tmp_path / "a", good, strict_skills=False).skills] == ["good"]


def test_folders_that_are_not_there_and_names_given_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^agent\.skills: .*nowhere: expected a folder with a SKILL\.md"):
        loaded(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^agent\.skill_dirs: there is no folder"):
        load_skills(SkillsConfig(skill_dirs=(str(tmp_path / "nowhere"),)))
    with pytest.raises(UserError, match=r"^agent\.skill_dirs: .* found none"):
        load_skills(SkillsConfig(skill_dirs=(str(tmp_path),)))
    with pytest.raises(UserError, match=r"b/SKILL\.md: name: 'tides' is taken by .*a/SKILL\.md"):
        loaded(write(tmp_path / "a"), write(tmp_path / "b"))

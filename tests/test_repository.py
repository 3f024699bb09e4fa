"""What an upload may replace and delete in a repository, on the stand-in Hub.

Run as a script, this file is the client: it plays every scenario, each in a repository of its own, and prints what was
said as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub import LocalHub

CLIPS = {"a.flac": "fLaC a", "b.flac": "fLaC b", "metadata.jsonl": "a\nb\n", "README.md": "# Clips\n"}
FOREST = {"2019/forest.flac": b"fLaC forest", "2020/sea.flac": b"fLaC sea", "README.md": b"# Mine\n", "notes.txt": b"x"}
STUB = b"---\nlicense: mit\n---\n"
MARKER = ".musicgen-dreamboothing.json"


class Client:
    """Pushes as this program does, and changes repositories as a person does."""

    def __init__(self, work: Path) -> None:
        from huggingface_hub import HfApi

        self.work, self.api = work, HfApi()
        self.output: dict[str, list[str]] = {}

    def push(self, name: str, files: dict[str, str], *, private: bool | None = False) -> None:
        from musicgen_dreamboothing.console import UserError, printed
        from musicgen_dreamboothing.sharing import repository

        paths = {path: self.work / name / path for path in files}
        for path, text in files.items():
            paths[path].parent.mkdir(parents=True, exist_ok=True)
            paths[path].write_text(text)
        target = repository.Repository(f"someone/{name}", "dataset", private, None, "--name", "--private")
        with contextlib.redirect_stdout(io.StringIO()) as out, printed():
            try:
                print("url", repository.upload(repository.open_repository(target), paths, "Clips").rpartition("/")[2])
            except (UserError, KeyboardInterrupt) as error:
                print(f"{type(error).__name__}: {error}")
        self.output.setdefault(name, []).append(out.getvalue())

    def edit(self, name: str, path: str, text: str | None) -> None:
        where: Any = {"path_in_repo": path, "repo_id": f"someone/{name}", "repo_type": "dataset"}
        if text is None:
            self.api.delete_file(**where)
        else:
            self.api.upload_file(path_or_fileobj=text.encode(), **where)


def new(client: Client) -> None:
    client.push("new", CLIPS, private=True)
    client.push("new", CLIPS, private=True)


def files_of_others(client: Client) -> None:
    client.push("forest", CLIPS)


def empty(client: Client) -> None:
    client.push("attributes", CLIPS)
    client.push("stub", CLIPS)
    client.push("short", CLIPS)


def visibility(client: Client) -> None:
    client.push("public", CLIPS, private=True)
    client.push("secret", CLIPS, private=False)
    client.push("unset", CLIPS, private=None)


def published_later(client: Client) -> None:
    client.push("later", CLIPS, private=True)
    client.api.update_repo_settings("someone/later", repo_type="dataset", private=False)
    client.push("later", CLIPS | {"a.flac": "fLaC a2"}, private=True)


def fewer(client: Client) -> None:
    client.push("fewer", CLIPS)
    client.edit("fewer", "mine/own.flac", "fLaC own")
    client.edit("fewer", "notes.txt", "mine")
    client.push("fewer", {path: text for path, text in CLIPS.items() if path != "b.flac"} | {"metadata.jsonl": "a\n"})


def edited_card(client: Client) -> None:
    client.push("card", CLIPS)
    client.edit("card", "README.md", "# Edited\n")
    client.push("card", CLIPS | {"README.md": "# New\n", "a.flac": "fLaC a2"})
    client.push("card", CLIPS | {"README.md": "# Newer\n", "a.flac": "fLaC a3"})


def edited_table(client: Client) -> None:
    client.push("table", CLIPS)
    client.edit("table", "metadata.jsonl", "a fast song\nb\n")
    client.push("table", CLIPS | {"a.flac": "fLaC a2"})


def own_file_in_the_way(client: Client) -> None:
    client.push("way", CLIPS)
    client.edit("way", "c.flac", "fLaC mine")
    client.edit("way", "d.flac", "fLaC d")
    client.push("way", CLIPS | {"c.flac": "fLaC c"})
    client.push("way", CLIPS | {"d.flac": "fLaC d"})
    client.push("way", CLIPS)


def edited_and_dropped(client: Client) -> None:
    client.push("dropped", CLIPS)
    client.edit("dropped", "b.flac", "fLaC better")
    client.push("dropped", {path: text for path, text in CLIPS.items() if path != "b.flac"})


def deleted_there(client: Client) -> None:
    client.push("deleted", CLIPS)
    client.edit("deleted", "a.flac", None)
    client.push("deleted", CLIPS)


def broken_marker(client: Client) -> None:
    client.push("marker", CLIPS)
    client.edit("marker", MARKER, "{}")
    client.push("marker", CLIPS | {"a.flac": "fLaC a2"})


def race(client: Client) -> None:
    from musicgen_dreamboothing.sharing import repository

    client.push("race", CLIPS)
    plan = repository._plan

    def slow(*args: Any) -> Any:
        client.edit("race", "a.flac", "fLaC theirs")
        return plan(*args)

    repository._plan = slow
    client.push("race", CLIPS | {"a.flac": "fLaC ours"})
    repository._plan = plan


def many(client: Client) -> None:
    from musicgen_dreamboothing.sharing import repository

    files = {f"{number}.flac": f"fLaC {number}" for number in range(7)} | {"metadata.jsonl": "seven\n"}
    repository.BATCH_FILES = 3
    client.push("many", files)
    commit, calls = repository._commit, []

    def killed(*args: Any) -> str:
        calls.append(args)
        if len(calls) == 3:  # the list of files and one part are there
            raise KeyboardInterrupt
        return commit(*args)

    repository._commit = killed
    client.push("killed", files)
    repository._commit = commit
    # The first clip was changed before the next run, and one is no longer wanted.
    client.push("killed", {path: text for path, text in files.items() if path != "1.flac"} | {"0.flac": "fLaC new"})
    repository.BATCH_FILES, repository.BATCH_BYTES = 500, 15
    client.push("bytes", files)
    repository.BATCH_BYTES = 2_000_000_000


def refused(client: Client) -> None:
    client.push("disabled", CLIPS)
    client.push("nobody/../x", CLIPS)


PLAYED = (
    new,
    files_of_others,
    empty,
    visibility,
    published_later,
    fewer,
    edited_card,
    edited_table,
    own_file_in_the_way,
    edited_and_dropped,
    deleted_there,
    broken_marker,
    race,
    many,
    refused,
)


@dataclass(frozen=True)
class Played:
    """The hub afterwards, and what was said at each push, by repository."""

    hub: LocalHub
    output: dict[str, list[str]]

    def files(self, name: str) -> dict[str, str]:
        there = self.hub.files(f"someone/{name}", "dataset")
        return {path: data.decode() for path, data in there.items() if path != MARKER}

    def marker(self, name: str) -> dict[str, Any]:
        marker: dict[str, Any] = json.loads(self.hub.files(f"someone/{name}", "dataset")[MARKER])
        return marker

    def commits(self, name: str) -> int:
        return len(self.hub.repos["dataset", f"someone/{name}"].commits) - 1


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    work = tmp_path_factory.mktemp("repository")
    with LocalHub() as hub:
        add: Callable[..., str] = lambda name, files, **more: hub.add(  # noqa: E731
            f"someone/{name}", files, repo_type="dataset", **more
        )
        add("forest", FOREST)
        add("attributes", {".gitattributes": b"*.flac filter=lfs\n"})
        add("stub", {".gitattributes": b"*.flac filter=lfs\n", "README.md": STUB})
        add("short", {"README.md": STUB + b"# My recordings\n"})
        add("public", {})
        add("secret", {}, private=True)
        add("unset", {}, private=True)
        add("disabled", {}, disabled=True)
        done = subprocess.run(
            [sys.executable, __file__, str(work)],
            env={**os.environ, **hub.environment(work / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield Played(hub, json.loads(done.stdout.splitlines()[-1]))


def test_a_second_push_without_changes_makes_no_commit(played: Played) -> None:
    assert played.output["new"] == ["url new\n", "url new\n"]
    assert played.files("new") == CLIPS
    assert set(played.marker("new")["files"]) == set(CLIPS)
    assert played.hub.private("someone/new", "dataset")
    assert played.commits("new") == 1


def test_a_repository_of_others_stays_as_it_is(played: Played) -> None:
    assert played.output["forest"] == [
        "UserError: the dataset 'someone/forest' on the Hub holds files that this program did not upload "
        "(2019/forest.flac, 2020/sea.flac, README.md, notes.txt); choose another --name, or delete them there\n"
    ]
    assert played.hub.files("someone/forest", "dataset") == FOREST


@pytest.mark.parametrize("name", ["attributes", "stub"])
def test_what_the_website_puts_into_a_new_repository_is_no_obstacle(played: Played, name: str) -> None:
    note = f"note: README.md in the dataset 'someone/{name}' on the Hub holds only metadata, and will be replaced\n"
    assert played.output[name] == [(note if name == "stub" else "") + f"url {name}\n"]
    assert played.files(name) == CLIPS | {".gitattributes": "*.flac filter=lfs\n"}


def test_a_card_with_text_belongs_to_others(played: Played) -> None:
    assert "holds files that this program did not upload (README.md)" in played.output["short"][0]
    assert played.files("short") == {"README.md": STUB.decode() + "# My recordings\n"}


def test_nothing_private_is_published(played: Played) -> None:
    assert played.output["public"] == [
        "UserError: the dataset 'someone/public' on the Hub is public, and --private asks for a private one; make it "
        "private in its settings there, choose another --name, or set --private false\n"
    ]
    assert played.files("public") == {}
    assert "is public, and --private asks for a private one" in played.output["later"][1]
    assert played.files("later") == CLIPS


def test_a_private_repository_stays_private(played: Played) -> None:
    note = "note: the dataset 'someone/secret' on the Hub is private and stays private; its settings there make it"
    assert played.output["secret"] == [f"{note} public\nurl secret\n"]
    assert played.output["unset"] == ["url unset\n"]
    assert played.hub.private("someone/secret", "dataset")
    assert played.hub.private("someone/unset", "dataset")


def test_only_a_clip_of_ours_that_is_no_longer_listed_goes(played: Played) -> None:
    own = {"mine/own.flac": "fLaC own", "notes.txt": "mine"}
    assert played.output["fewer"][1] == "url fewer\n"
    kept = {path: text for path, text in CLIPS.items() if path != "b.flac"}
    assert played.files("fewer") == kept | own | {"metadata.jsonl": "a\n"}
    assert set(played.marker("fewer")["files"]) == set(kept)


def test_an_edited_card_stays_and_the_rest_is_replaced(played: Played) -> None:
    note = "note: README.md was edited on the Hub and stays; this run's is not uploaded\n"
    assert played.output["card"][1:] == [f"{note}url card\n"] * 2
    assert played.files("card") == CLIPS | {"README.md": "# Edited\n", "a.flac": "fLaC a3"}


def test_an_edited_table_stops_the_push(played: Played) -> None:
    assert played.output["table"][1] == (
        "UserError: metadata.jsonl in the dataset 'someone/table' on the Hub was changed there, and would be "
        "overwritten; take the changes over and delete it there, or choose another --name\n"
    )
    assert played.files("table") == CLIPS | {"metadata.jsonl": "a fast song\nb\n"}


def test_a_file_of_a_person_is_never_taken_over(played: Played) -> None:
    assert "c.flac in the dataset 'someone/way' on the Hub was changed there" in played.output["way"][1]
    assert played.output["way"][2:] == ["url way\n"] * 2
    # The same file, put there by the person, is neither uploaded nor deleted later.
    assert played.files("way") == CLIPS | {"c.flac": "fLaC mine", "d.flac": "fLaC d"}


def test_a_changed_clip_is_not_deleted(played: Played) -> None:
    assert played.output["dropped"][1] == "note: b.flac was changed on the Hub and stays there\nurl dropped\n"
    assert played.files("dropped") == CLIPS | {"b.flac": "fLaC better"}
    assert "b.flac" not in played.marker("dropped")["files"]


def test_a_clip_that_was_deleted_there_comes_back_with_a_note(played: Played) -> None:
    assert played.output["deleted"][1] == "note: deleted on the Hub, and uploaded again: a.flac\nurl deleted\n"
    assert played.files("deleted") == CLIPS


def test_a_marker_that_was_changed_is_not_trusted(played: Played) -> None:
    assert f"{MARKER} in the dataset 'someone/marker' on the Hub was changed there" in played.output["marker"][1]
    assert played.files("marker") == CLIPS


def test_a_push_of_others_in_between_is_not_overwritten(played: Played) -> None:
    assert played.output["race"][1] == (
        "UserError: the upload to the dataset 'someone/race' on the Hub failed: somebody else pushed to it meanwhile; "
        "run the same command again\n"
    )
    assert played.files("race") == CLIPS | {"a.flac": "fLaC theirs"}


SEVEN = {f"{number}.flac": f"fLaC {number}" for number in range(7)} | {"metadata.jsonl": "seven\n"}


@pytest.mark.parametrize(("name", "parts"), [("many", 3), ("bytes", 4)])
def test_many_files_go_up_in_parts(played: Played, name: str, parts: int) -> None:
    lines = played.output[name][0].splitlines()
    assert lines[0] == f"uploading 8 files (0.00 GB) in {parts} parts"
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"uploaded part {n + 1} of {parts}" for n in range(parts)]
    assert lines[-2].endswith("MB/s")
    assert played.files(name) == SEVEN
    assert played.commits(name) == 1 + parts  # the list of files first
    assert played.marker(name)["complete"] is True


def test_an_upload_that_was_stopped_is_continued(played: Played) -> None:
    assert "KeyboardInterrupt" in played.output["killed"][0]
    assert played.output["killed"][1].splitlines()[0] == "uploading 6 files (0.00 GB) in 2 parts"
    assert "deleted on the Hub" not in played.output["killed"][1]
    assert played.files("killed") == {path: text for path, text in SEVEN.items() if path != "1.flac"} | {
        "0.flac": "fLaC new"
    }
    marker = played.marker("killed")
    assert (marker["complete"], set(marker["files"])) == (True, set(SEVEN) - {"1.flac"})
    assert all(len(digests) == 2 for digests in marker["files"].values())


def test_what_cannot_be_written_ends_in_one_line(played: Played) -> None:
    assert played.output["disabled"] == [
        "UserError: the dataset 'someone/disabled' on the Hub is disabled; choose another --name\n"
    ]
    (line,) = played.output["nobody/../x"]
    assert line.startswith("UserError: can't write to the dataset 'someone/nobody/../x' on the Hub (")
    assert line.count("\n") == 1


def main(work: Path) -> None:
    client = Client(work)
    for scenario in PLAYED:
        scenario(client)
    print(json.dumps(client.output))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

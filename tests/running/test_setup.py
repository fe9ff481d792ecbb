"""After `.ci/setup` was interrupted, at any step, its next run makes a working environment."""

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.workspace import ROOT

# Bash: hang in the first run, to be interrupted there; do nothing in the second run. Like many interrupted programs,
# this one exits with a status when it gets a signal, instead of dying of the signal.
HANG = f"""
if [ ! -e "{{mark}}" ]; then {{first}} exec "{sys.executable}" -c '
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(2))
pathlib.Path("{{mark}}").touch()
time.sleep(60)'
fi
"""
PYTHON = '#!/bin/bash\ncase "$*" in *"-m venv"*) {hang} ;; esac\nexec "{real}" "$@"\n'
UV = '#!/bin/bash\ncase "$*" in *"pip sync"*) {hang} ;; esac\nexec "{real}" "$@"\n'


@dataclass
class Clone:
    """A clone with only the files that a set-up needs: the script, and lock files that name one local package."""

    folder: Path
    programs: Path

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    @property
    def mark(self) -> Path:
        return self.folder / "hung"

    def start(self, kind: str = "run") -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", ".ci/setup", *kind.split()],
            cwd=self.folder,
            env={
                "PATH": f"{self.programs}:/usr/bin:/bin",
                "HOME": str(self.folder),
                "PYTHON": str(self.programs / "python"),
                "UV_OFFLINE": "1",
                "UV_CACHE_DIR": str(self.folder.with_name("cache")),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A test run in the background may ignore SIGINT; bash cannot undo that.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def set_up(self, kind: str = "run") -> str:
        """Run `.ci/setup` to its end, and return the output."""
        process = self.start(kind)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    def interrupt(self, kind: str = "run", stop: int = signal.SIGINT) -> None:
        """Start `.ci/setup`; once it hangs, send the signal `stop` to it and its child processes."""
        process = self.start(kind)
        deadline = time.monotonic() + 180
        while not self.mark.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, stop)
        process.communicate(timeout=300)

    def works(self) -> bool:
        """Return True if the environment has its complete package, and pip."""
        command = "import pip, thing; assert thing.ANSWER == 42"
        return not subprocess.run([self.venv / "bin" / "python", "-c", command], check=False).returncode


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone for all tests of this module, because creating its environment takes most of their time."""
    path = tmp_path_factory.mktemp("repository")
    made = Clone(path / "clone", path / "programs")
    (made.folder / ".ci").mkdir(parents=True)
    made.programs.mkdir()
    shutil.copy(ROOT / ".ci" / "setup", made.folder / ".ci")
    wheel_in(path)
    return made


@pytest.fixture
def clone(repository: Clone) -> Clone:
    """The module's clone, with programs that do not hang and unchanged lock files. It may have an environment."""
    wheel = next(repository.folder.parent.glob("*.whl"))
    for lock in ("requirements.lock", "requirements-dev.lock"):
        (repository.folder / lock).write_text(f"# {lock}\nthing @ {wheel.as_uri()}\n")
    program(repository.programs / "python", PYTHON, sys.executable, "")
    program(repository.programs / "uv", UV, str(Path(sys.executable).with_name("uv")), "")
    repository.mark.unlink(missing_ok=True)
    return repository


def program(path: Path, template: str, real: str, hang: str) -> None:
    path.write_text(template.format(real=real, hang=hang))
    path.chmod(0o755)


def wheel_in(folder: Path) -> Path:
    path = folder / "thing-1.0-py3-none-any.whl"
    files = {
        "thing.py": b"ANSWER = 42\n",
        "thing-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text).digest()).decode().rstrip("=")
        for name, text in files.items()
    }
    record = "".join(f"{name},sha256={digests[name]},{len(text)}\n" for name, text in files.items())
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, "thing-1.0.dist-info/RECORD": record.encode()}.items():
            wheel.writestr(name, text)
    return path


def while_making(clone: Clone) -> None:
    """Let `.ci/setup` hang when the environment has Python but no pip yet."""
    first = f'"{sys.executable}" -m venv --without-pip .venv;'
    program(clone.programs / "python", PYTHON, sys.executable, HANG.format(mark=clone.mark, first=first))


def before_installing(clone: Clone) -> None:
    """Let `.ci/setup` hang when the environment exists but has no packages yet."""
    uv = str(Path(sys.executable).with_name("uv"))
    program(clone.programs / "uv", UV, uv, HANG.format(mark=clone.mark, first=""))


def while_installing(clone: Clone) -> None:
    """Let `.ci/setup` hang when the package is recorded as installed but its module is missing."""
    uv = str(Path(sys.executable).with_name("uv"))
    first = f'"{uv}" "$@"; rm .venv/lib/python*/site-packages/thing.py;'
    program(clone.programs / "uv", UV, uv, HANG.format(mark=clone.mark, first=first))


@pytest.mark.full
@pytest.mark.parametrize(
    ("moment", "stop"),
    [(while_making, signal.SIGINT), (before_installing, signal.SIGKILL)],
)
def test_a_set_up_that_was_interrupted_is_made_again(clone: Clone, moment: Callable[[Clone], None], stop: int) -> None:
    shutil.rmtree(clone.venv, ignore_errors=True)
    moment(clone)
    clone.interrupt(stop=stop)
    assert not clone.works()

    clone.set_up()

    assert clone.works()
    assert clone.set_up() == ""


@pytest.mark.full
def test_a_new_set_of_packages_that_was_interrupted_is_not_taken_for_the_old_one(clone: Clone) -> None:
    clone.set_up("dev")
    lock = clone.folder / "requirements-dev.lock"
    old = lock.read_text()
    lock.write_text(f"# changed\n{old}")
    while_installing(clone)
    clone.interrupt("dev")
    lock.write_text(old)

    clone.set_up("dev")

    assert clone.works()


def no_python(venv: Path) -> None:
    for path in (venv / "bin").glob("python*"):
        path.unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python3.12")


def lock_of(venv: Path) -> Path:
    """Return the lock file in `venv`: that of the development packages if another test has installed them."""
    installed = venv / "requirements-dev.lock"
    return installed if installed.exists() else venv / "requirements.lock"


def half_a_lock(venv: Path) -> None:
    lock = lock_of(venv)
    lock.write_text(lock.read_text()[:5])


@pytest.mark.full
@pytest.mark.parametrize("spoil", [no_python, half_a_lock])
def test_a_spoilt_environment_is_made_good(clone: Clone, spoil: Callable[[Path], None]) -> None:
    clone.set_up()
    spoil(clone.venv)

    assert clone.set_up() != ""

    assert clone.works()
    assert clone.set_up() == ""


@pytest.mark.full
def test_the_extras_of_an_install_stay(clone: Clone) -> None:
    (clone.folder / "requirements-more.lock").write_text("# more\n")
    clone.set_up("install more")

    assert clone.set_up() == ""
    assert "# more" in (clone.venv / "requirements.lock").read_text()
    no_python(clone.venv)
    clone.set_up()
    assert "# more" in (clone.venv / "requirements.lock").read_text()
    clone.set_up("install")
    assert "# more" not in (clone.venv / "requirements.lock").read_text()
    assert clone.set_up() == ""


@pytest.mark.full
def test_other_accounts_can_read_the_packages_whatever_the_umask(clone: Clone) -> None:
    """If root starts the gateway, PostgreSQL runs as another account, from the installed packages."""
    clone.set_up()
    cache = clone.folder.with_name("cache")
    subprocess.run(["chmod", "-R", "go=", str(cache)], check=True)  # As if uv had filled it under this umask.
    shutil.rmtree(clone.venv)
    before = os.umask(0o077)
    try:
        clone.set_up()
    finally:
        os.umask(before)

    module = next(clone.venv.glob("lib/python*/site-packages/thing.py"))
    assert module.stat().st_mode & 0o044 == 0o044
    folders = [path for path in module.parents if path.is_relative_to(clone.venv)]
    assert {path.stat().st_mode & 0o055 for path in folders} == {0o055}


def test_an_unknown_word_changes_nothing(clone: Clone) -> None:
    process = clone.start("--help")

    assert process.communicate()[0] == "Usage: .ci/setup run | dev | install [EXTRA...]\n"
    assert process.returncode == 2

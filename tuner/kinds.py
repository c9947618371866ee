"""What a file is by its first bytes, whatever it is called; and what to send in its place."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

HEAD_BYTES = 16

_BEGINNINGS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"PAR1", "parquet"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (4, b"TFL3", "tflite"),
    (4, b"ORTM", "ort"),
    (0, b"GGUF", "gguf"),
    (0, b"ARROW1", "arrow"),
    (0, b"FEA1", "arrow"),
    (0, b"\x1f\x8b", "packed"),
    (0, b"BZh", "packed"),
    (0, b"\xfd7zXZ\x00", "packed"),
    (0, b"7z\xbc\xaf\x27\x1c", "packed"),
    (0, b"\x28\xb5\x2f\xfd", "packed"),
    (0, b"Rar!", "packed"),
    (0, b"\x89PNG", "image"),
    (0, b"\xff\xd8\xff", "image"),
)

NAMES = {
    "torch": "a PyTorch file (a zip archive with pickles or TorchScript inside), whose loading can execute code",
    "pickle": "a Python pickle, perhaps an old PyTorch checkpoint, whose loading can execute code",
    "keras": "a Keras archive",
    "hdf5": "an HDF5 file, perhaps of Keras",
    "tflite": "a TensorFlow Lite file",
    "ort": "a file in onnxruntime's own ORT format",
    "safetensors": "a safetensors file, which holds weights without a graph",
    "gguf": "a GGUF file",
    "npz": "an .npz archive of arrays",
    "npy": "a single .npy array",
    "parquet": "a parquet file",
    "arrow": "an Arrow or Feather file",
    "zip": "a zip archive without arrays",
    "damaged": "a zip archive that is damaged or was cut off",
    "packed": "a compressed archive",
    "image": "a picture",
}

_TORCH = "export it with torch.onnx.export and give the .onnx file"
_TENSORFLOW = "convert it with tf2onnx and give the .onnx file"
_DATA = "that is data, not a model; give it where data goes, and here an .onnx file"
_AS_MODEL = {
    "torch": _TORCH,
    "pickle": _TORCH,
    "safetensors": "load the weights into their network, " + _TORCH,
    "gguf": "load the weights into their network, " + _TORCH,
    "keras": _TENSORFLOW,
    "hdf5": _TENSORFLOW,
    "tflite": _TENSORFLOW,
    "ort": "give the .onnx file that it was made from",
    "packed": "unpack it and give the .onnx file inside",
}
_AS_DATA = {
    "npy": "put it into an archive under the name of the model's input: np.savez('data.npz', x=array)",
    "torch": "save plain arrays with np.savez('data.npz', x=tensor.numpy())",
    "pickle": "save plain arrays with np.savez",
    "hdf5": "save the arrays with np.savez, or as parquet",
    "safetensors": "save the arrays with np.savez",
    "arrow": "write it as parquet: pyarrow.parquet.write_table",
    "packed": "unpack it and give the .npz or .parquet file inside",
    "damaged": "copy or write it again",
}


def kind_of(path: Path) -> str | None:
    """The kind of a file by its content, one of NAMES; None for what has no mark of its own, ONNX among it. OSError where it cannot
    be read."""
    with path.open("rb") as stream:
        return kind_of_stream(stream, path.stat().st_size)


def kind_of_stream(stream: BinaryIO, size: int) -> str | None:
    """The kind of what an open file of `size` bytes holds; its position is left anywhere."""
    head = stream.read(HEAD_BYTES)
    # Flatbuffers have their mark behind an offset, which is small; in a protobuf any text could stand there.
    found = ((at, kind) for at, mark, kind in _BEGINNINGS if head[at : at + len(mark)] == mark)
    kind = next((kind for at, kind in found if not at or head[2:4] == b"\0\0"), None)
    if kind == "zip":
        return _kind_of_zip(stream)
    if kind is not None:
        return kind
    if len(head) > 2 and head[0] == 0x80 and head[1] in range(2, 6):
        return "pickle"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    return None


def not_a_model(kind: str) -> str:
    """What a file of `kind` is, and what to give in its place where a model is wanted."""
    return f"{NAMES[kind]}; {_AS_MODEL.get(kind, _DATA)}"


def not_data(kind: str | None) -> str:
    """What a file of `kind` is, and what to give in its place where data is wanted."""
    usual = "give arrays of rows, named after the model's inputs, as .npz (np.savez) or .parquet"
    return f"{NAMES[kind]}; {_AS_DATA.get(kind, usual)}" if kind else f"neither an .npz archive nor a parquet file; {usual}"


def _kind_of_zip(stream: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return "damaged"
    parts = {name.rpartition("/")[2] for name in names}
    if parts & {"data.pkl", "constants.pkl", "archive_format", "serialized_exported_program.json"} or any(
        name.endswith((".pkl", ".pickle", ".pt")) for name in parts
    ):
        return "torch"
    if any(name.endswith(".npy") for name in parts):
        return "npz"
    if {"config.json", "metadata.json"} <= parts:
        return "keras"
    return "zip"

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from builders import small_cnn

from tuner.kinds import NAMES, kind_of, kind_of_stream, not_a_model, not_data


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return stream.getvalue()


def kind(data: bytes) -> str | None:
    return kind_of_stream(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (zipped("net/data.pkl", "net/version"), "torch"),
        (zipped("net/code/__torch__.py", "net/constants.pkl"), "torch"),
        (zipped("archive_format", "models/model.json"), "torch"),
        (zipped("data.npy", "evil.pkl"), "torch"),
        (zipped("x.npy"), "npz"),
        (zipped("config.json", "metadata.json", "model.weights.h5"), "keras"),
        (zipped("a.txt"), "zip"),
        (b"PK\x03\x04 broken", "damaged"),
        (zipped(), "zip"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "hdf5"),
        ((8).to_bytes(8, "little") + b'{"a":1} ' + bytes(4), "safetensors"),
        ((800).to_bytes(8, "little") + b'{"a":1} ', None),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), "tflite"),
        (b"\x1c\x00\x00\x00ORTM" + bytes(20), "ort"),
        (b"\x08\x08\x12\x09ORTModule", None),
        (b"GGUF\x03\x00", "gguf"),
        (b"PAR1....", "parquet"),
        (b"\x93NUMPY\x01\x00", "npy"),
        (b"\x1f\x8b\x08", "packed"),
        (b"\x89PNG\r\n", "image"),
        (b"plain text", None),
        (b"", None),
        (small_cnn().data, None),
    ],
)
def test_a_file_is_known_by_its_first_bytes(data: bytes, expected: str | None) -> None:
    assert kind(data) == expected


def test_what_torch_saves_is_known_whatever_it_is_called(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    path = tmp_path / "weights.onnx"
    torch.save(layer.state_dict(), path)
    assert kind_of(path) == "torch"
    torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=False)
    assert kind_of(path) == "pickle"


def test_every_kind_has_its_way_out() -> None:
    for name, text in NAMES.items():
        assert not_a_model(name).startswith(f"{text}; ") and ".onnx file" in not_a_model(name)
        if name not in ("npz", "parquet"):
            assert not_data(name).startswith(f"{text}; ") and len(not_data(name)) > len(text) + 20
    assert not_a_model("torch").endswith("whose loading can execute code; export it with torch.onnx.export and give the .onnx file")
    assert not_a_model("hdf5") == "an HDF5 file, perhaps of Keras; convert it with tf2onnx and give the .onnx file"

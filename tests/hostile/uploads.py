"""Uploads that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import numpy as np
from builders import small_cnn
from service import BINARY

from hostile import data, models
from hostile.world import Case, World

EXPORT = "export it with torch.onnx.export and give the .onnx file"
SAVEZ = "save plain arrays with np.savez"


def model(name: str, says: str, content: Callable[[], bytes], status: int = 422, called: str = "net.onnx") -> Case:
    return Case(f"model: {name}", status, says, lambda world: world.upload("models", content(), called))


def rows(name: str, says: str, content: Callable[[], bytes], status: int = 422, called: str = "rows.npz") -> Case:
    return Case(f"data: {name}", status, says, lambda world: world.upload("datasets", content(), called))


def named(name: str, called: str, says: str = "name must be a file name of at most 200 printable characters", status: int = 422) -> Case:
    return Case(f"name: {name}", status, says, lambda world: world.upload("models", small_cnn().data, called))


MODELS = [
    model("truncated", "is not an ONNX file, or it is truncated; export or copy it again", models.truncated),
    model("empty body", "the body is empty; send the file: curl --data-binary @models", lambda: b""),
    model("one byte", "is not an ONNX file, or it is truncated; export or copy it again", lambda: b"\x08"),
    model("random bytes", "is not an ONNX file, or it is truncated; export or copy it again", models.noise),
    model("zeros", "is not an ONNX file, or it is truncated; export or copy it again", lambda: bytes(1000)),
    model("external data pointing upward", "save it in one file", lambda: models.external("../../../etc/passwd")),
    model("external data with an absolute path", "save it in one file", lambda: models.external("/etc/passwd")),
    model("external data in /proc", "save it in one file", lambda: models.external("/proc/self/environ")),
    model("external data by URL", "save it in one file", lambda: models.external("http://169.254.169.254/latest/meta-data")),
    model("a graph asking for 40 GB", "at most 16 GiB are taken. Export the model with smaller constants", models.forty_gigabytes),
    model("a graph asking for 40 GB only when it runs", "have the server's inspect_memory_gb raised", models.hidden_gigabytes),
    model("an initializer of 4 TB in four bytes", "but stores 4; export it again", models.boastful_initializer),
    model("foreign operator domain", "Export the model without custom operators", models.foreign_domain),
    model("an opset of the future", "opsets 11 to 24 are supported: export it with one of those", lambda: models.opset(99)),
    model("an opset too old", "opsets 11 to 24 are supported: export it with one of those", lambda: models.opset(7)),
    model("local functions", "inline them with onnx.inliner.inline_local_functions", models.local_functions),
    model("200,001 nodes", "nodes; at most 200000 are taken", models.many_nodes),
    model("1,001 more inputs", "inputs; at most 1000 are taken", models.many_inputs),
    model("graphs nested 28 deep", "export it without so many If, Loop or Scan in each other", lambda: models.nested(28)),
    model("graphs nested 20,000 deep", "is not an ONNX file, or it is truncated; export or copy it again", models.bottomless),
    model("an endless name", "characters; at most 4096 are taken", models.endless_name),
    model("a cycle", "export it again, or find the node with onnx.checker", models.cycle),
    model("PyTorch archive called .onnx", EXPORT, models.torch_archive, 415),
    model("TorchScript called .onnx", EXPORT, models.torchscript, 415),
    model("exported program called .onnx", EXPORT, models.exported_program, 415),
    model("pickle called .onnx", EXPORT, models.bare_pickle, 415),
    model("a .pt file", "Export the network with torch.onnx.export and send the .onnx file", models.torch_archive, 415, "net.pt"),
    model("a .pt2 file", "Export the network with torch.onnx.export and send the .onnx file", models.exported_program, 415, "net.PT2"),
    model("a .pkl file", "Export the network with torch.onnx.export and send the .onnx file", models.bare_pickle, 415, "net.pkl"),
    model("HDF5", "convert it with tf2onnx and give the .onnx file", models.hdf5, 415),
    model("safetensors", "load the weights into their network, export it with torch.onnx.export", models.safetensors, 415),
    model("npz", "give it where data goes, and here an .onnx file", data.rows, 415),
    model("gzip", "unpack it and give the .onnx file inside", lambda: b"\x1f\x8b\x08" + bytes(20), 415),
]

DATA = [
    rows("onnx", "give arrays of rows, named after the model's inputs, as .npz", lambda: small_cnn().data, 415),
    rows("empty body", "the body is empty; send the file: curl --data-binary @datasets", lambda: b""),
    rows("random bytes", "give arrays of rows, named after the model's inputs, as .npz", models.noise, 415),
    rows("pickle", SAVEZ, models.bare_pickle, 415),
    rows("PyTorch archive", SAVEZ, models.torch_archive, 415),
    rows("a .pkl file", "Save plain arrays with np.savez and send the .npz file", models.bare_pickle, 415, "rows.pkl"),
    rows("one .npy", "put it into an archive under the name of the model's input", lambda: data.npy(data.GOOD), 415),
    rows("zip bomb", "would unpack to 0.24 GiB, more than the 0.1 GiB allowed. Send fewer rows, or several files", data.bomb),
    rows("zip bomb by its directory", "Send fewer rows, or several files", lambda: data.directory_says(2**32 - 2)),
    rows("a directory that says too little", "write it again", lambda: data.directory_says(40)),
    rows("a header that says 4 EB", "more than its", lambda: data.header_says((2**60,))),
    rows("a header of no rows", "it must have at least one row and one value per row", lambda: data.header_says((0, 4))),
    rows("a header of fewer than no rows", "it must have at least one row and one value per row", lambda: data.header_says((-1, 4))),
    rows("a scalar", "it must have at least one row and one value per row", lambda: data.npz({"x": np.array(1, np.float32)})),
    rows("object arrays", "only booleans, integers and floats are read, objects never", data.objects),
    rows("texts", "only booleans, integers and floats are read, objects never", lambda: data.npz({"x": np.array(["a", "b"])})),
    rows("encrypted zip", "write it with np.savez or np.savez_compressed", data.encrypted),
    rows("bzip2 inside", "write it with np.savez or np.savez_compressed", lambda: data.archive(("x.npy", data.npy(data.GOOD)), packed=12)),
    rows("a member that leads upward", "write the file with np.savez", lambda: data.archive(("../x.npy", data.npy(data.GOOD)))),
    rows("a member with an absolute path", "write the file with np.savez", lambda: data.archive(("/etc/x.npy", data.npy(data.GOOD)))),
    rows("a member with a drive", "write the file with np.savez", lambda: data.archive(("C:x.npy", data.npy(data.GOOD)))),
    rows("a member twice", "names must differ. Write the file again", data.doubled),
    rows("a text beside the arrays", "an .npz file holds .npy members only", lambda: data.archive(("a.txt", b""), ("x.npy", b""))),
    rows("npy version 3", "save plain numbers with np.save or np.savez", lambda: data.archive(("x.npy", data.npy(data.GOOD, (3, 0))))),
    rows("parquet with nulls", "Fill or drop them", lambda: data.parquet({"x": [1.0, None]})),
    rows("parquet with texts", "only booleans, integers, floats and lists of them are read", lambda: data.parquet({"x": ["a", "b"]})),
    rows("parquet without rows", "a split needs at least one", lambda: data.parquet({"x": []})),
    rows("parquet cut off", "write it again", lambda: data.parquet({"x": [1.0, 2.0]})[:-20]),
    rows("damaged zip", "copy or write it again", data.damaged),
]

NAMES = [
    named("leads upward", "../../etc/cron.d/net.onnx"),
    named("absolute", "/etc/passwd"),
    named("backslashes", "..\\net.onnx"),
    named("dots alone", ".."),
    named("empty", " "),
    named("null byte", "net\0.onnx"),
    named("line break", "net.onnx\r\nX-Evil: 1"),
    named("201 characters", "n" * 196 + ".onnx"),
    named("100,000 characters", "n" * 50_000, "name", 422),
    named("writing direction turned round", "net\u202exnno.exe"),
]


def unread(path: str, size: int) -> Case:
    """A body that is never sent: its announcement is enough."""
    head = f"POST {path} HTTP/1.1\nContent-Type: application/octet-stream\nContent-Length: {size}"
    return Case(f"body: {size:,} bytes announced for {path[8:14]}", 413, "ACCUTUNE_MAX_UPLOAD_GB", lambda world: world.raw(head))


def endless() -> Iterator[bytes]:
    """8 MB without an announcement."""
    for _ in range(128):
        yield bytes(1 << 16)


def slow(world: World) -> httpx.Response:
    head = "POST /api/v1/models?name=net.onnx HTTP/1.1\nContent-Type: application/octet-stream\nContent-Length: 1000"
    return world.raw(head, b"\x08")


def typed(name: str, content_type: str, says: str = "Send the file itself as the body: curl --data-binary @models") -> Case:
    def send(world: World) -> httpx.Response:
        return world.send("POST", "/models?name=net.onnx", content=small_cnn().data, headers={"Content-Type": content_type})

    return Case(f"type: {name}", 415, says, send)


def multipart(world: World) -> httpx.Response:
    return world.send("POST", "/models?name=net.onnx", files={"file": ("net.onnx", small_cnn().data, BINARY["Content-Type"])})


BODIES = [
    unread("/api/v1/models?name=net.onnx", 2 * 10**9),
    unread("/api/v1/datasets?name=rows.npz", 10**18),
    Case("body: 8 MB in chunks", 413, "send fewer rows or a smaller model", lambda world: world.upload("datasets", endless(), "rows.npz")),
    Case("body: one byte, then silence", 408, "Send it again", slow, {"Connection": "close"}),
    typed("JSON", "application/json"),
    typed("a form", "application/x-www-form-urlencoded"),
    typed("nonsense", "x" * 3000),
    Case("type: multipart", 415, "Send the file itself as the body: curl --data-binary @models", multipart),
]

CASES = [*MODELS, *DATA, *NAMES, *BODIES]

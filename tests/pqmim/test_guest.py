"""The codec in other people's programs: what it takes and gives, moves, copies and sends."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pqmim import arrays, checkpoint
from pqmim.cli import main
from pqmim.codec import Codec
from pqmim.completion.rule import CompletionError, Rule
from tests.code_archives import make
from tests.models import tiny_bytes, tiny_codec
from tests.photos import photograph
from tests.picture_files import icc

PIXELS = photograph()[0, :, 30:94, 50:130].contiguous()  # [3, 64, 80]
ARRAY = PIXELS.permute(1, 2, 0).numpy()
P3 = ((0.5151, 0.2920, 0.1571), (0.2412, 0.6922, 0.0666), (-0.0011, 0.0419, 0.7841))


def codec() -> Codec:
    return tiny_codec(prior=True)


# One behaviour


def test_kinds_of_images_give_the_same_bytes():
    wanted = codec().compress(PIXELS)
    readonly = ARRAY.copy()
    readonly.flags.writeable = False
    for image in (Image.fromarray(ARRAY), ARRAY, np.asfortranarray(ARRAY), readonly,
                  ARRAY[::-1][::-1], PIXELS.to(memory_format=torch.preserve_format)):  # fmt: skip
        assert codec().compress(image) == wanted
        assert codec().compress_to(image, 90) == codec().compress_to(PIXELS, 90)


def test_batches_give_the_bytes_of_their_images():
    other = PIXELS.flip(2)
    wanted = [codec().compress(PIXELS), codec().compress(other)]
    pair = torch.stack([PIXELS, other])
    small = PIXELS[:, :40]
    for batch in (pair, pair.permute(0, 2, 3, 1).numpy(), [PIXELS, other], (ARRAY, other),
                  [Image.fromarray(ARRAY), other]):  # fmt: skip
        assert codec().compress_batch(batch) == wanted
        assert torch.equal(codec().encode(batch), codec().encode(pair))
        assert torch.equal(codec().search(batch)[0], codec().search(pair)[0])
        assert torch.equal(codec().latent(batch), codec().latent(pair))
    mixed = codec().compress_batch([PIXELS, small, other])
    assert mixed == [wanted[0], codec().compress(small), wanted[1]]
    assert codec().compress_batch([]) == []


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (PIXELS.permute(1, 2, 0), r"not a tensor uint8 \[64, 80, 3\]; .permute\(2, 0, 1\)"),
        (PIXELS.numpy(), r"array uint8 \[3, 64, 80\]; .transpose\(1, 2, 0\)"),
        (PIXELS.float() / 255, r"not a tensor float32 .*\(x \* 255\).round\(\)"),
        (ARRAY.astype(np.float64), "not a numpy array float64"),
        (ARRAY.astype(np.uint16), "not a numpy array uint16"),
        (ARRAY > 9, "not a numpy array bool"),
        (PIXELS[0], r"not a tensor uint8 \[64, 80\]"),
        (ARRAY[..., :2], r"not a numpy array uint8 \[64, 80, 2\]"),
        (PIXELS[None], r"a tensor uint8 \[1, 3, 64, 80\]: a batch, where one image is meant"),
        ([PIXELS], "a list of 1: a batch"),
        (PIXELS[:, :0], "an empty batch or image"),
        ("photo.png", "not a str"),
        (None, "not a NoneType"),
        (ARRAY.astype(object), "must be numbers"),
        (Image.new("F", (9, 9)), "32-bit samples"),
    ],
)  # fmt: skip
def test_an_image_of_another_kind_is_named(image, says):
    for method in (codec().compress, lambda x: codec().compress_to(x, 99)):
        with pytest.raises(ValueError, match=says):
            method(image)


@pytest.mark.parametrize(
    ("batch", "says"),
    [(PIXELS, "one image, where a batch is meant"), (Image.fromarray(ARRAY), "one image"),
     ([PIXELS, PIXELS[:, 1:]], r"of the sizes \[\(63, 80\), \(64, 80\)\]"), ([], "0 images"),
     (ARRAY, "one image"), (PIXELS.permute(1, 2, 0)[None], r"permute\(0, 3, 1, 2\)"),
     (PIXELS[None].numpy(), r"transpose\(0, 2, 3, 1\)"), (iter([PIXELS]), "not a list_iterator")],
)  # fmt: skip
def test_a_batch_of_another_kind_is_named(batch, says):
    with pytest.raises(ValueError, match=says):
        codec().encode(batch)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_a_pillow_image_is_taken_as_the_command_takes_its_file(tmp_path, mode):
    image = Image.fromarray(ARRAY).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image).astype(np.uint16) << 8) + 77)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(ARRAY[..., 0]))
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    same_as_the_command(tmp_path, image, suffix)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_orientation_and_profile_of_a_pillow_image(tmp_path, suffix, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"exif": exif, "icc_profile": icc(b"RGB ", P3)}
    same_as_the_command(tmp_path, Image.fromarray(ARRAY), suffix, **options)


def same_as_the_command(folder: Path, image: Image.Image, suffix: str, **options: object) -> None:
    weights, path, out = folder / "w", folder / f"in.{suffix}", folder / "out.pqm"
    weights.write_bytes(tiny_bytes(prior=True))
    image.save(path, **options)
    assert main(["compress", str(path), str(out), "--weights", str(weights), "--quiet"]) == 0
    assert codec().compress(Image.open(path)) == out.read_bytes()


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [([], {}), (["--price", "0"], {"price": 0}), (["--price", "2"], {"price": 2}),
     (["--quality", "3"], {"quality": 3}), (["--fast"], {"plan": (2, 1, 1, 1, 1, 1, 1, 1)}),
     (["--max-bytes", "80"], None)],
    ids=str,
)  # fmt: skip
def test_the_command_and_the_library_make_the_same_bytes(tmp_path, flags, arguments):
    weights, path, out = tmp_path / "w", tmp_path / "in.png", tmp_path / "out.pqm"
    weights.write_bytes(tiny_bytes(prior=True))
    Image.fromarray(ARRAY).save(path)
    assert main(["compress", str(path), str(out), *flags, "--weights", str(weights)]) == 0
    if arguments is None:
        assert codec().compress_to(ARRAY, 80) == out.read_bytes()
    else:
        assert codec().compress(ARRAY, **arguments) == out.read_bytes()


def test_every_method_gives_tensors():
    c, batch = codec(), PIXELS[None]
    codes, data = c.encode(batch), c.compress(PIXELS)
    known = torch.ones_like(codes, dtype=torch.bool)
    found = {
        "encode": codes, "search": c.search(batch)[0], "latent": c.latent(batch),
        "decode": c.decode(codes, 64, 80), "decompress": c.decompress(data),
        "decompress_batch": c.decompress_batch([data])[0],
        "decompress_codes": c.decompress_codes(data), "complete": c.complete(codes, known),
        "preview": c.preview(codes, known, 64, 80),
        "entropy_decode": c.entropy_decode(c.entropy_encode(codes), *codes.shape[1:]),
    }  # fmt: skip
    assert {type(value) for value in found.values()} == {torch.Tensor}
    assert torch.equal(found["decompress_codes"], found["search"][0])


def test_codes_come_as_tensors_or_arrays_of_any_integer_type():
    c, codes = codec(), codec().encode(PIXELS[None])
    wanted = c.decode(codes, 64, 80)
    frozen = codes.numpy().copy()
    frozen.flags.writeable = False
    for same in (codes.long(), codes.to(torch.uint16), codes.numpy(), frozen):
        assert torch.equal(c.decode(same, 64, 80), wanted)
    known = np.ones(codes.shape, bool)
    assert torch.equal(c.decode(codes, 64, 80, known), wanted)
    assert c.compress_codes(codes.numpy(), 64, 80) == c.compress_codes(codes, 64, 80)
    assert c.entropy_encode(codes.numpy()) == c.entropy_encode(codes)
    assert torch.equal(c.complete(codes.numpy(), known), codes)


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda c: c.float(), "integers, not a tensor float32"), (lambda c: c > 2, "integers"),
     (lambda c: c.numpy().astype(np.float64), "integers, not a numpy array float64"),
     (lambda c: c.tolist(), "not a list of 1")],
)  # fmt: skip
def test_codes_that_are_no_integers_are_refused(change, says):
    c = codec()
    codes = c.encode(PIXELS[None])
    known = torch.ones_like(codes, dtype=torch.bool)
    calls = [lambda x: c.decode(x, 64, 80), c.entropy_encode, lambda x: c.complete(x, known),
             lambda x: c.compress_codes(x, 64, 80),
             lambda x: c.preview(x, known, 64, 80)]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=says):
            call(change(codes))
    with pytest.raises(ValueError, match="a mask must be bool, not a tensor uint8"):
        c.complete(codes, codes)


def test_seeds_and_steps_of_any_integer_type():
    c, codes = codec(), codec().encode(torch.stack([PIXELS, PIXELS.flip(1)]))
    known = torch.arange(codes.numel()).reshape(codes.shape) % 3 > 0
    wanted = c.complete(codes, known, steps=2, seed=7)
    for seed in (np.int64(7), np.uint8(7), torch.tensor(7), np.array(7), [7, 7], (7, np.int8(7)),
                 np.array([7, 7]), torch.tensor([7, 7])):  # fmt: skip
        assert torch.equal(c.complete(codes, known, steps=np.int64(2), seed=seed), wanted)
    assert not torch.equal(c.complete(codes, known, steps=2, seed=8), wanted)
    large = 2**64 - 1
    assert Rule(seed=np.uint64(large)) == Rule(seed=large)
    for bad in (7.0, "7", None, [1.5], np.float64(2)):
        with pytest.raises(CompletionError, match="must be an integer"):
            Rule(seed=bad)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_a_layout_is_never_guessed(a, b, c, tensor):
    values = np.zeros((a, b, c), np.uint8)
    right = (a if tensor else c) == 3
    try:
        found = arrays.one(torch.from_numpy(values) if tensor else values)
    except ValueError:
        assert not right
    else:
        assert right and tuple(found.shape) == ((a, b, c) if tensor else (c, a, b))


# Moved, copied, sent


def test_weights_by_the_usual_name_from_files_folders_and_archives(tmp_path):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "w.safetensors"
    path.write_bytes(tiny_bytes(prior=True))
    root = make(str(tmp_path / "archive"), [2]).store.root
    (Path(root) / "model").mkdir(exist_ok=True)
    for old in (Path(root) / "model").iterdir():
        old.unlink()
    (Path(root) / "model" / "w.safetensors").write_bytes(path.read_bytes())
    for name in (path, str(path), path.parent, root):
        assert Codec.from_pretrained(name).fingerprint == codec().fingerprint
    assert Codec.from_pretrained().fingerprint == Codec.load("default").fingerprint
    (path.parent / "v.safetensors").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"it has v\.safetensors, w\.safetensors"):
        Codec.from_pretrained(path.parent)
    with pytest.raises(checkpoint.CheckpointError, match="no weights 'user/model'"):
        Codec.from_pretrained("user/model")


def test_to_moves_and_gives_itself(monkeypatch):
    c = codec()
    wanted, prior = c.compress(PIXELS), c.prior
    assert c.to("cpu") is c and c.compress(PIXELS) == wanted and c.prior is not prior
    moved: list[torch.device] = []
    monkeypatch.setattr(c.model, "to", lambda *a, **_: moved.extend(a) or c.model)
    c.to("meta")
    assert moved == [torch.device("meta")] and c.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_to_a_gpu_and_back_and_in_a_pickle():
    c = codec()
    codes, wanted = c.encode(PIXELS[None]), c.entropy_encode(c.encode(PIXELS[None]))
    assert c.to("cuda").entropy_encode(codes) == wanted
    assert next(c.model.parameters()).is_cuda
    copied = pickle.loads(pickle.dumps(c))
    assert copied.device.type == "cuda" and copied.entropy_encode(codes) == wanted
    assert c.to("cpu").entropy_encode(codes) == wanted


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_and_pickles(how, used):
    c = codec()
    wanted = codec().compress(PIXELS)
    if used:
        c.compress(PIXELS)
    other = how(c)
    assert other.compress(PIXELS) == wanted == c.compress(PIXELS)
    assert other.fingerprint == c.fingerprint and other._prior_lock is not c._prior_lock
    assert torch.equal(other.decompress(wanted), c.decompress(wanted))


def _sizes(task: tuple[Codec, np.ndarray]) -> bytes:
    return task[0].compress(task[1])


def test_sent_to_processes():
    c = codec()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_sizes, [(c, ARRAY)]) == [c.compress(ARRAY)]


def test_a_codec_in_an_object_is_copied_with_it_while_others_use_it():
    c, wanted = codec(), codec().compress(PIXELS)
    found: list[bytes] = []

    def work() -> None:
        found.append(copy.deepcopy({"codec": c})["codec"].compress(PIXELS))
        found.append(c.compress(PIXELS))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 6

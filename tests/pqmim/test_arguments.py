"""What is given to the codec besides pictures: any kind that means it, and the rest by name."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from pqmim import Codec, Rule, arguments, arrays
from pqmim.checkpoint import CheckpointError
from pqmim.tokenizer import Tokenizer
from tests.models import tiny_bytes, tiny_codec
from tests.photos import photograph

PIXELS = photograph()[0, :, 40:80, 60:110].contiguous()  # [3, 40, 50]


@functools.cache
def codec() -> Codec:
    return tiny_codec(prior=True)


@functools.cache
def codes() -> torch.Tensor:
    return codec().encode(PIXELS[None])


@functools.cache
def file() -> bytes:
    return codec().compress(PIXELS)


def test_numbers_of_numpy_and_torch_are_those_of_python():
    c = codec()
    wanted = c.compress(PIXELS, 2, (2, 1), 2, 0.5)
    for whole in (np.int64, np.uint8, torch.tensor):
        for plan in ([2, 1], np.array([2, 1]), torch.tensor([2, 1]), b"\2\1"):
            price = np.float64(0.5) if whole is np.int64 else torch.tensor(0.5)
            assert c.compress(PIXELS, whole(2), plan, whole(2), price) == wanted
        assert c.compress_to(PIXELS, whole(90)) == c.compress_to(PIXELS, 90)
        shown = c.decode(codes(), whole(40), whole(50))
        assert torch.equal(shown, c.decode(codes(), 40, 50))
        payloads = c.entropy_encode(codes())
        assert torch.equal(c.entropy_decode(payloads, whole(3), whole(4), whole(4)), codes())


def test_bytes_of_every_kind():
    c, wanted = codec(), codec().decompress(file())
    for kind in (bytes, bytearray, memoryview):
        assert torch.equal(c.decompress(kind(file())), wanted)
        assert torch.equal(c.decompress(kind(file()), partial=True), wanted)
        assert torch.equal(c.decompress_codes(kind(file())), c.decompress_codes(file()))
        weights = Codec.from_bytes(kind(tiny_bytes(prior=True)))
        assert weights.compress(PIXELS) == file()
    assert len(c.decompress_batch(iter([file(), bytearray(file())]))) == 2


def test_codes_of_every_integer_type():
    c, wanted = codec(), codec().compress_codes(codes(), 40, 50)
    known = torch.arange(codes().numel()).reshape(codes().shape) % 3 > 0
    filled = c.complete(codes(), known, steps=2)
    kinds = [codes().to(kind) for kind in (torch.int8, torch.int32, torch.int64, torch.uint16)]
    others = [codes().numpy().astype(kind) for kind in (np.uint32, np.uint64, ">u2", "<i8")]
    for given in (*kinds, *others):
        assert c.compress_codes(given, 40, 50) == wanted
        assert c.entropy_encode(given) == c.entropy_encode(codes())
        assert torch.equal(c.complete(given, known, steps=2), filled)
    for wrong in (codes().long() - 16, codes().long() + 256, codes().long() + 2**40):
        calls = [c.entropy_encode, lambda x: c.decode(x, 40, 50), lambda x: c.complete(x, known),
                 lambda x: c.compress_codes(x, 40, 50)]  # fmt: skip
        for call in calls:
            with pytest.raises(ValueError, match="codes"):
                call(wrong)


def test_no_images_are_no_pixels():
    none = codes()[:0]
    assert codec().decode(none, 40, 50).shape == (0, 3, 40, 50)
    assert codec().compress_codes(none, 40, 50) == codec().entropy_encode(none) == []


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.compress(PIXELS, 8.0), "quality must be a whole number, not 8.0"),
        (lambda c: c.compress(PIXELS, True), "quality must be a whole number, not True"),
        (lambda c: c.encode(PIXELS[None], "2"), "quality must be"),
        (lambda c: c.compress(PIXELS, price="0.1"), "price must be a number, not '0.1'"),
        (lambda c: c.compress(PIXELS, price=None), "price must be a number, not None"),
        (lambda c: c.search(PIXELS[None], price=[1, 2]), "price must be a number"),
        (lambda c: c.search(PIXELS[None], price=float("nan")), "price nan: not a number"),
        (lambda c: c.compress(PIXELS, plan=None), "plan must be whole numbers"),
        (lambda c: c.compress(PIXELS, plan="fast"), "plan must be whole numbers"),
        (lambda c: c.compress(PIXELS, plan=(2.0, 1)), "a stage of the plan must be"),
        (lambda c: c.compress(PIXELS, stages=1.5), "stages must be"),
        (lambda c: c.compress_to(PIXELS, "200"), "max_bytes must be"),
        (lambda c: c.compress_to(PIXELS, None), "max_bytes must be"),
        (lambda c: c.compress_to(PIXELS, 0), "0 bytes are too few"),
        (lambda c: c.compress_to(PIXELS, -7), "-7 bytes are too few"),
        (lambda c: c.decompress("a.pqm"), r"data must be .*, not a str: Path\(name\).read_bytes"),
        (lambda c: c.decompress(Path("a.pqm")), "data must be the bytes of a file, not a Posix"),
        (lambda c: c.decompress(None), "data must be the bytes of a file, not a NoneType"),
        (lambda c: c.decompress(io.BytesIO(file())), r"not a BytesIO: \.getvalue\(\)"),
        (lambda c: c.decompress(np.frombuffer(file(), np.uint8)), "not a ndarray"),
        (lambda c: c.decompress_batch(file()), "data must be a list of bytes, not a bytes"),
        (lambda c: c.decompress_batch([file(), None]), r"data\[1\] must be the bytes"),
        (lambda c: c.decompress(file(), fill="sharp"), "fill must be 'absent', 'mean' or"),
        (lambda c: c.decompress(file(), fill=True), "fill must be"),
        (lambda c: c.decompress(file(), max_pixels=None), "max_pixels must be"),
        (lambda c: c.decode(codes(), 40.0, 50), "height must be a whole number, not 40.0"),
        (lambda c: c.entropy_decode([b""], 3.0, 4, 4), "h must be a whole number"),
        (lambda c: c.entropy_decode(b"abc", 3, 4, 4), "payloads must be a list of bytes"),
        (lambda c: c.complete(codes(), codes() > 3, temperature="warm"), "temperature must be"),
        (lambda c: Codec.from_bytes(tiny_bytes(), "cuda:7"), "device 'cuda:7': PyTorch .* sees"),
        (lambda c: Codec.from_bytes(tiny_bytes(), "gpu"), "device 'gpu': it is 'cpu', 'cuda'"),
        (lambda c: c.to(None), "device None: it is"),
        (lambda c: Codec.from_bytes("w.safetensors"), "data must be the bytes of a file"),
        (lambda c: c.compress(PIXELS.to("meta")), "without values"),
        (lambda c: c.compress(PIXELS.to_sparse()), "sparse: .to_dense()"),
        (lambda c: c.compress(np.ma.masked_array(np.zeros((5, 5, 3), np.uint8))), "with a mask"),
    ],
)  # fmt: skip
def test_what_is_of_no_such_kind_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(codec())


@pytest.mark.parametrize("name", [None, 12, b"default"])
def test_weights_of_no_such_kind_are_named(name):
    with pytest.raises(CheckpointError, match="a path or a name is meant"):
        Codec.load(name)


def test_a_rule_is_a_fill():
    data = file()
    assert torch.equal(codec().decompress(data, fill=Rule(2)), codec().decompress(data))


def test_every_parameter_of_a_door_is_checked_or_known_elsewhere():
    elsewhere = {"pixels", "codes", "known", "steps", "seed", "name", "latent", "other", "partial",
                 "model", "fingerprint", "prior", "state", "return"}  # fmt: skip
    doors = [getattr(d, "__func__", d) for d in (vars(Codec) | vars(Tokenizer)).values()]
    found = [door.__wrapped__ for door in doors if hasattr(door, "__wrapped__")]
    assert len(found) > 15
    for door in found:
        for name, kind in door.__annotations__.items():
            known = name in arguments.BY_NAME or kind in arguments.BY_KIND
            assert known or name in elsewhere, f"{door} {name}"


def test_numbers_are_checked_in_one_place():
    assert arrays.whole("n", np.int8(3)) == arrays.whole("n", torch.tensor(3)) == 3
    assert type(arrays.whole("n", np.int8(3))) is int


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_around_it():
    c = codec()
    compiled = torch.compile(lambda x: c.encode(x), backend="eager")
    assert torch.equal(compiled(PIXELS[None]), codes())
    shown = torch.compile(lambda x: c.decode(x, 40, 50) + 1, backend="eager")
    assert torch.equal(shown(codes()), c.decode(codes(), 40, 50) + 1)


def test_the_random_numbers_of_the_caller_are_left_alone():
    c, known = codec(), codes() > 3
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with np.errstate(all="raise"):
        for call in (lambda: c.compress(PIXELS), lambda: c.compress_to(PIXELS, 90),
                     lambda: c.decompress(file()), lambda: c.complete(codes(), known)):  # fmt: skip
            call()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]

"""Progress for a person: on a terminal, in a file, and not at all."""

from __future__ import annotations

import io

from pqmim.meter import LINE_EVERY_S, Meter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_file_gets_the_first_line_at_once_and_then_one_every_half_minute() -> None:
    stream, time = io.StringIO(), Time()
    meter = Meter("encode", 200, "images", stream=stream, clock=time)
    for done in range(100):
        meter.show(done)
        time.now += 1.0
    meter.close()
    assert stream.getvalue().splitlines() == [
        "encode: 0%, 0 images", "encode: 15%, 30 images", "encode: 30%, 60 images",
        "encode: 45%, 90 images",
    ]  # fmt: skip
    assert LINE_EVERY_S == 30.0


def test_a_terminal_gets_a_bar_and_lines_stand_above_it() -> None:
    stream = Terminal()
    meter = Meter("encode", 200, stream=stream)
    meter.show(50, "1.5/s, ETA 0:01:40")
    meter.bar.refresh()
    meter.say("a replica was lost")
    meter.close()
    text = stream.getvalue()
    assert "encode:  25%|" in text and "1.5/s, ETA 0:01:40" in text
    assert "a replica was lost\n" in text


def test_quiet_is_quiet() -> None:
    for stream in (io.StringIO(), Terminal()):
        meter = Meter("encode", 200, quiet=True, stream=stream)
        meter.show(50)
        meter.say("hello")
        meter.close()
        assert stream.getvalue() == ""


def test_a_training_run_forecasts_the_rest_of_its_budget() -> None:
    stream = io.StringIO()
    meter = Meter("train", 10.0, "minutes", stream=stream)
    meter.show_run(150.0, 300, "loss 0.5")
    assert stream.getvalue() == "train: 25%, step 300, 2.00/s, loss 0.5, ETA 0:07:30\n"

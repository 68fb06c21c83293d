"""Recordings in the files of public data sets: AEDAT 2 and 3.1, ATIS .bin, SpikingJelly's .npz.

No library under a permissive licence reads the first two. Formats: iniVation, "AEDAT file formats"
(2.0 and 3.1); Orchard et al. (2015), Read_Ndataset.m; spikingjelly 2.0.0, datasets/. Each reader
believes nothing of a file: what is cut off, foreign or outside of the sensor is a FileFormatError
that begins with the file's name.
"""

import struct

import numpy as np

from soul_deploy.base import Array, errors
from soul_deploy.base.events import EVENT, Recording, count_of, packed, recording_of
from soul_deploy.base.opening import File, OpenFile, opened
from soul_deploy.runtime.io import arrays

MAX_HEADER = 1 << 16  # bytes of the text in front of the events
NAMES = ("t", "x", "y", "p")
OVERFLOW_ROW, OVERFLOW_TIME = 240, 1 << 13
"""An ATIS record of this row is no event: the times from it on are so many µs later."""
PACKET = struct.Struct("<hhiiiiii")
"""AEDAT 3.1: type, source, size of an event, place of its time in it, overflows of the time,
capacity, number, valid."""
POLARITY_EVENTS = 1
SPECIAL = 1 << 15  # of a DVS128's address: a signal from outside, no pixel


def read_npz_events(file: File, width: int, height: int) -> Recording:
    """A .npz of arrays t, x, y, p, as SpikingJelly's events_np folders hold them."""
    with opened(file) as source:
        missing = [name for name in NAMES if name not in arrays.npz_names(source)]
        errors.require(not missing, f"{source}: it holds no array {', '.join(missing)}")
        held = arrays.read_npz(source, NAMES)
        return recording_of(packed(str(source), *held.values()), width, height, str(source))


def read_atis(file: File, width: int, height: int) -> Recording:
    """N-MNIST's and N-Caltech101's .bin: 5 bytes an event: x, y, then polarity (1 bit) and time
    (23 bits), highest first.
    """
    with opened(file) as source:
        count = count_of(source.size, 5, str(source))
        records = source.data.reshape(count, 5).astype(np.uint64)
        x, y, high, middle, low = records.T
        time = ((high & np.uint64(127)) << np.uint64(16)) | (middle << np.uint64(8)) | low
        marks = y == OVERFLOW_ROW
        time += np.cumsum(marks, dtype=np.uint64) * np.uint64(OVERFLOW_TIME)
        columns = (column[~marks] for column in (time, x, y, high >> np.uint64(7)))
        return recording_of(packed(str(source), *columns), width, height, str(source))


def read_aedat2(file: File) -> Recording:
    """CIFAR10-DVS's .aedat: AEDAT 2.0 of a DVS128, 8 bytes an event, address and µs, highest first.

    The sensor lay on its side: x is 127 less the address's y and the other way round, as in
    SpikingJelly and Soul. Signals from outside are left out.
    """
    with opened(file) as source:
        start = _text_end(source, b"#!AER-DAT2")
        count = count_of(source.size - start, 8, str(source))
        words = source.data[start:].view(">u4").reshape(count, 2)
        address, time = words[:, 0].astype(np.int64), words[:, 1]
        high = int(address.max(initial=0))
        errors.require(
            high < 2 * SPECIAL, f"{source}: an address {high:#x}; those of a DVS128 have 16 bits"
        )
        pixels = address < SPECIAL
        address, time = address[pixels], time[pixels]
        x, y, polarity = 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1)
        return recording_of(packed(str(source), time, x, y, polarity), 128, 128, str(source))


def read_aedat3(file: File, width: int = 128, height: int = 128) -> Recording:
    """DVS-Gesture's .aedat: AEDAT 3.1, packets of events of one kind each.

    Packets of other kinds, and events that the camera marks as invalid, are left out.
    """
    with opened(file) as source:
        place = _text_end(source, b"#!AER-DAT3.1")
        found: list[Array] = []
        while place < source.size:
            place, events = _packet(source, place)
            if events is not None:
                found.append(events)
        events = np.concatenate(found) if found else np.zeros(0, EVENT)
        return recording_of(events, width, height, str(source))


def _packet(source: OpenFile, place: int) -> tuple[int, Array | None]:
    """Where the next packet begins, and this one's events, if they are of pixels."""
    told = f"{source}: the packet at {place}"
    begin = place + PACKET.size
    errors.require(begin <= source.size, f"{told} is cut off")
    kind, _, size, at, overflow, capacity, number, valid = PACKET.unpack(
        source.data[place:begin].tobytes()
    )
    errors.require(
        kind >= 0 and size > 0 and overflow >= 0 and 0 <= valid <= number <= capacity,
        f"{told} is none: type {kind}, {capacity} events of {size} bytes, {number} there, {valid} "
        f"valid, {overflow} overflows",
    )
    end = begin + size * capacity
    errors.require(
        end <= source.size,
        f"{told} is cut off: {size * capacity} bytes announced, {source.size - begin} there",
    )
    if kind != POLARITY_EVENTS:
        return end, None
    errors.require(
        (size, at) == (8, 4), f"{told}: events of {size} bytes, their time at {at}; known: 8 and 4"
    )
    data, time = source.data[begin : begin + size * number].view("<u4").reshape(number, 2).T
    events = np.zeros(number, EVENT)
    errors.require(not (time >> np.uint32(31)).any(), f"{told}: a time below 0")
    events["t"] = time.astype(np.uint64) | np.uint64(overflow << 31)
    events["x"], events["y"] = data >> np.uint32(17), data >> np.uint32(2) & np.uint32(0x7FFF)
    events["p"] = data >> np.uint32(1) & np.uint32(1)
    return end, events[data & np.uint32(1) == 1]


def _text_end(source: OpenFile, opening: bytes) -> int:
    """Where the lines that begin with # end. Raises FileFormatError without the first of them."""
    head = source.start(MAX_HEADER)
    errors.require(
        head.startswith(opening), f"{source} does not begin with {opening.decode()}: it is no AEDAT"
    )
    place = 0
    while head.startswith(b"#", place):
        line = head.find(b"\n", place)
        errors.require(line >= 0, f"{source}: the text in front of its events does not end")
        ended = head[place:line].rstrip(b"\r") == b"#!END-HEADER"
        place = line + 1
        if ended:
            break
    return place

#!/usr/bin/python3
"""Restores a backup from the files of a repository in a directory.

    reader.py DIR [--key-file FILE] list
    reader.py DIR [--key-file FILE] restore LINEAGE.RECORD IMAGE

It follows docs/FORMAT.md and shares nothing with the program that writes repositories. It keeps all packs in
memory, checks every seal and every ID, and stops at the first thing that is wrong.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import struct
import sys

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HOLE = bytes(32)
CHUNK, NODE, BACKUP, FOOTER = 1, 2, 3, 255
DATA, META = 1, 2
SUFFIX = {DATA: "data", META: "meta"}
TYPES = {DATA: (CHUNK,), META: (NODE, BACKUP)}
MIB = 1 << 20
LARGEST = {CHUNK: 4 * MIB, NODE: 34 + 256 * 32, BACKUP: MIB}
NAME = r"(?!\.)[a-z0-9._-]{1,64}(?<!\.)"  # of a lineage, of a session, of a record


class Damaged(Exception):
    """Something is not what the format says."""


def expect(condition, what):
    if not condition:
        raise Damaged(what)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def hmac_sha256(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def derive(secret, salt, use, lineage=None):
    info = "orlop-1 " + use + (" " + lineage if lineage is not None else "")
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info.encode()).derive(secret)


def decompress(content, length):
    frame = zstandard.ZstdDecompressor().decompressobj()
    plaintext = frame.decompress(content)
    alone = content[:4] == b"\x28\xb5\x2f\xfd" and frame.eof and not frame.unused_data
    expect(alone and len(plaintext) == length, "not one zstd frame of that length")
    return plaintext


def read_key(path):
    with open(path, encoding="ascii") as file:
        line = file.read().rstrip(" \t\r\n")
    magic, _, digits = line.partition(" ")
    expect(magic == "ORLOP-KEY-1", "no key file")
    raw = base64.b32decode(digits.replace("-", ""))
    key, check = raw[:32], raw[32:]
    expect(len(raw) == 35 and check == sha256(b"orlop-1 key checksum", key)[:3], "the key's checksum is wrong")
    return key


class Repository:
    def __init__(self, directory, key):
        self.directory = directory
        lines = self.get("config").split(b"\n")
        expect(len(lines) == 4 and lines[3] == b"", "config: not three lines")
        signed, mac, checksum = lines[0] + b"\n", lines[1], lines[2]
        expect(checksum == b"sha-256 " + sha256(signed, lines[1], b"\n").hex().encode(), "config: wrong checksum")
        config = json.loads(signed)
        expect(config["magic"] == "orlop-repository", "config: another magic")
        expect(config["min_reader"] <= 1 and not config["features"], "config: too new")
        expect(config["hash"] == "hmac-sha-256" and config["compression"] == "zstd", "config: unknown algorithms")
        self.id = bytes.fromhex(config["repository"])
        self.encrypted = config["encrypted"]
        expect(config["cipher"] == ("aes-256-gcm" if self.encrypted else "none-hmac-sha-256-128"), "config: unknown cipher")
        expect(self.encrypted == (key is not None), "a key is needed if and only if the repository is encrypted")
        self.master = self.unwrap(config["slots"], key) if self.encrypted else sha256(b"orlop-1 unencrypted", self.id)
        wanted = hmac_sha256(derive(self.master, self.id, "config"), signed).hex()
        expect(mac == b"hmac-sha-256 " + wanted.encode(), "config: wrong MAC")

    def unwrap(self, slots, key):
        key_id = sha256(b"orlop-1 key id", key)[:8].hex()
        for slot in slots:
            if slot["kind"] == "key-file" and slot["id"] == key_id:
                wrapping = derive(key, bytes.fromhex(slot["params"]["salt"]), "wrap")
                return AESGCM(wrapping).decrypt(bytes(12), base64.b64decode(slot["wrapped"]), self.id)
        raise Damaged("no slot is for this key")

    def get(self, name):
        with open(os.path.join(self.directory, name), "rb") as file:
            return file.read()

    def names(self, prefix, pattern):
        """Returns what a directory holds, without what is none of the repository's."""
        return sorted(n for n in os.listdir(os.path.join(self.directory, prefix)) if re.fullmatch(pattern, n))

    def lineages(self):
        return [n for n in self.names("lineages", NAME) if os.path.isdir(os.path.join(self.directory, "lineages", n))]

    def open_sealed(self, key, number, sealed, additional):
        nonce = struct.pack("<I8x", number)
        if self.encrypted:
            return AESGCM(key).decrypt(nonce, sealed, additional)
        plaintext, tag = sealed[:-16], sealed[-16:]
        wanted = hmac_sha256(key, nonce, struct.pack("<Q", len(additional)), additional, plaintext)[:16]
        expect(hmac.compare_digest(tag, wanted), "wrong tag")
        return plaintext

    def open_object(self, name):
        data = self.get(name)
        expect(data[:8] == b"ORLOPOB1" and data[8:24] == self.id, name + ": not a sealed object of this repository")
        expect(sha256(data[:-32]) == data[-32:], name + ": wrong checksum")
        sealed = data[56:-32]
        additional = self.id + struct.pack("<Q", len(sealed) - 16) + name.encode()
        return self.open_sealed(derive(self.master, data[24:56], "head"), 0, sealed, additional)


class Lineage:
    def __init__(self, repository, name):
        self.repository = repository
        self.name = name
        self.id_key = derive(repository.master, repository.id, "id", name)
        self.places = {}
        prefix = f"lineages/{name}/heads"
        numbers = repository.names(prefix, "[0-9]{16}")
        expect(numbers, prefix + ": no head")
        self.head = Head(name, int(numbers[-1]), repository.open_object(f"{prefix}/{numbers[-1]}"))
        for pack, size in self.head.packs:
            self.read_pack(pack, size)

    def chunk_id(self, kind, level, plaintext):
        return hmac_sha256(self.id_key, struct.pack("<BBQ", kind, level, len(plaintext)), plaintext)

    def read_pack(self, name, size):
        data = self.repository.get(name)
        expect(len(data) == size, name + ": another size")
        pack = Pack(self, name, data)
        for entry in pack.entries:
            self.places.setdefault(entry.id, (pack, entry))

    def record(self, wanted, kind, level):
        expect(wanted in self.places, f"no pack holds {wanted.hex()}")
        pack, entry = self.places[wanted]
        expect((entry.kind, entry.level) == (kind, level), f"{wanted.hex()} is something else")
        content = pack.open(entry)
        if entry.flags & 1:
            content = decompress(content, entry.length)
        expect(len(content) == entry.length, f"{wanted.hex()} has another length")
        expect(self.chunk_id(kind, level, content) == wanted, f"{wanted.hex()} has another ID")
        return content

    def chunks(self, identity, level, first):
        """Yields the index and the content of each chunk below a node, or of the chunk, that is not a hole."""
        if identity == HOLE:
            return
        if level == 0:
            yield first, self.record(identity, CHUNK, 0)
            return
        node = self.record(identity, NODE, level)
        expect(node[0] == 1 and node[1] == level, "another kind of tree node")
        at = 34
        for i in range(256):
            if node[2 + i // 8] & (1 << (i % 8)):
                child = node[at : at + 32]
                expect(child != HOLE, "a tree node with a child that is a hole")
                yield from self.chunks(child, level - 1, first + i * 256 ** (level - 1))
                at += 32
        expect(at == len(node) and at > 34, "a tree node of another length")

    def restore(self, backup, path):
        size, chunk_size, tree = backup["size"], backup["chunk_size"], backup["tree"]
        expect(tree["chunks"] == -(-size // chunk_size), "the size does not fit the tree")
        level = 1
        while 256**level < tree["chunks"]:
            level += 1
        with open(path, "xb") as image:
            image.truncate(size)
            for index, chunk in self.chunks(bytes.fromhex(tree["root"]), level, 0):
                expect(index < tree["chunks"] and len(chunk) == chunk_size, "a chunk of another size, or behind the end")
                image.seek(index * chunk_size)
                image.write(chunk[: size - index * chunk_size])


class Entry:
    def __init__(self, pack_kind, ordinal, data):
        self.ordinal = ordinal
        self.id = data[:32]
        self.kind, self.level, self.flags, zero, self.offset, self.sealed, self.length = struct.unpack("<BBBBIII", data[32:48])
        expect(zero == 0 and self.flags <= 1, "a record with unknown values")
        expect(self.kind in TYPES[pack_kind], "a record in a pack of another kind")
        expect(self.level <= 6 and (self.level > 0) == (self.kind == NODE), "a record of another level")
        expect(1 <= self.length <= LARGEST[self.kind], "a record of another length")
        content = self.sealed - 16
        expect(0 < content < self.length if self.flags else content == self.length, "a record that takes another length")


class Pack:
    def __init__(self, lineage, name, data):
        self.repository, self.data = lineage.repository, data
        expect(data[:8] == b"ORLOPPK1" and data[-40:-32] == b"ORLOPEND", name + ": no pack")
        expect(sha256(data[:-32]) == data[-32:], name + ": wrong checksum")
        self.kind, cipher, l, s, newer, k, length = struct.unpack("<BBHHHII", data[8:24])
        expect(newer == 0, name + ": too new")
        self.id, repository, salt = data[24:40], data[40:56], data[56:88]
        self.lineage, self.session = data[88 : 88 + l], data[88 + l : 88 + l + s]
        suffix = SUFFIX[self.kind]
        own = f"lineages/{self.lineage.decode()}/sessions/{self.session.decode()}/{self.id.hex()}.{suffix}"
        expect(own == name and repository == lineage.repository.id, name + ": holds another pack")
        expect(length == 88 + l + s + k and k <= 16384, name + ": wrong header")
        expect(cipher == (1 if lineage.repository.encrypted else 2), name + ": wrong cipher")
        offset, footer_length = struct.unpack("<II", data[-48:-40])
        expect(offset + footer_length + 48 == len(data), name + ": wrong trailer")
        self.key = derive(lineage.repository.master, salt, suffix)
        footer = self.unseal(0, data[offset : offset + footer_length], FOOTER, 0, 0, footer_length - 16, HOLE)
        expect(footer[:32] == sha256(data[:length]), name + ": the footer is another header's")
        (count,) = struct.unpack("<I", footer[32:36])
        expect(len(footer) == 36 + 48 * count and 1 <= count <= 16384, name + ": wrong footer")
        self.entries = [Entry(self.kind, i + 1, footer[36 + 48 * i : 84 + 48 * i]) for i in range(count)]
        at = length
        for entry in self.entries:
            expect(entry.offset == at, name + ": a gap between records")
            at += entry.sealed
        expect(at == offset, name + ": a gap before the footer")

    def unseal(self, number, sealed, kind, level, flags, length, identity):
        additional = b"".join(
            [
                self.repository.id,
                self.id,
                struct.pack("<BBBBI", self.kind, kind, level, flags, length),
                identity,
                struct.pack("<HH", len(self.lineage), len(self.session)),
                self.lineage,
                self.session,
            ]
        )
        return self.repository.open_sealed(self.key, number, sealed, additional)

    def open(self, e):
        return self.unseal(e.ordinal, self.data[e.offset : e.offset + e.sealed], e.kind, e.level, e.flags, e.length, e.id)


class Head:
    """The newest state of a lineage: its backups and its live packs."""

    def __init__(self, lineage, number, data):
        expect(data[0] == 1 and data[1] <= 1 and data[2:4] == b"\0\0", "a head of another version")
        (length,) = struct.unpack("<I", data[4:8])
        expect(length <= 256 * MIB, "a head that is too long")
        self.rest = decompress(data[8:], length) if data[1] & 1 else data[8:]
        expect(len(self.rest) == length, "a head of another length")
        expect(self.number("<Q") == number, "another head")
        self.take(16)
        expect((self.take(16) == bytes(16)) == (number == 1), "a head behind no other")
        self.sequence = self.number("<Q")
        expect(self.sequence >= 1, "a head without a sequence number")
        self.backups = [self.backup(lineage) for _ in range(self.number("<I"))]
        for _ in range(self.number("<I")):
            self.take(16 + 16 + 1)
            for _ in range(3):
                self.take(self.number("<B"))
            bases = self.number("<B")
            expect(bases <= 16, "a session with too many bases")
            self.take(bases * (32 + 8))
        self.packs = [self.pack(lineage) for _ in range(self.number("<I"))]
        expect(not self.rest, "a head with too many bytes")

    def take(self, length):
        expect(length <= len(self.rest), "a head that is too short")
        field, self.rest = self.rest[:length], self.rest[length:]
        return field

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def backup(self, lineage):
        encoded = self.take(self.number("<I"))
        record = json.loads(encoded)
        expect(record["min_reader"] <= 1, "a record that is too new")
        expect(record["hash"] == "hmac-sha-256" and record["compression"] == "zstd", "a record of unknown algorithms")
        expect(record["lineage"] == lineage and re.fullmatch(NAME, record["record"]), "a record of another lineage, or none")
        expect(1 <= record["sequence"] < self.sequence, "a record with another sequence")
        expect(record["chunk_size"] in [1 << n for n in range(16, 23)] and record["size"] >= 1, "a record of another size")
        expect(len(encoded) <= MIB and not record["created"].startswith("0001-01-01T00:00:00Z"), "a record that cannot be")
        return record

    def pack(self, lineage):
        session, identity, kind, size = self.take(16).hex(), self.take(16).hex(), self.number("<B"), self.number("<I")
        expect(kind in SUFFIX, "a pack of another kind")
        return f"lineages/{lineage}/sessions/{session}/{identity}.{SUFFIX[kind]}", size


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--key-file")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    restore = commands.add_parser("restore")
    restore.add_argument("backup")
    restore.add_argument("image")
    arguments = parser.parse_args()
    key = read_key(arguments.key_file) if arguments.key_file else None
    repository = Repository(arguments.directory, key)
    if arguments.command == "list":
        for name in repository.lineages():
            for backup in Lineage(repository, name).head.backups:
                print(f"{name}.{backup['record']}")
        return
    lineage_name, _, record = arguments.backup.rpartition(".")
    lineage = Lineage(repository, lineage_name)
    for backup in lineage.head.backups:
        if backup["record"] == record:
            lineage.restore(backup, arguments.image)
            return
    raise Damaged("no such backup")


if __name__ == "__main__":
    try:
        main()
    except (Damaged, InvalidTag, zstandard.ZstdError, struct.error, KeyError, ValueError, OSError) as error:
        sys.exit(f"reader.py: {type(error).__name__}: {error}")

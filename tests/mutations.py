"""Files as accidents leave them, for the tests: bytes that are inserted, deleted, doubled, cut off
or flipped."""

from hypothesis import strategies as st

PIECES = [b'"', b"\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b",", b"\t", b" ", b"_",
          b"+", b"-", b"a", b"9" * 5000, b"1_000", b"1e308", b"nan", b"&#" + b"9" * 5000 + b";",
          b":", "\u2028".encode(), "\u200d：é".encode(), b"\x0b", b"\x1c", b"[" * 5000, b"{}"]
MUTATIONS = st.lists(st.tuples(
    st.sampled_from(["insert", "delete", "repeat", "cut", "flip"]), st.floats(0, 1),
    st.floats(0, 1), st.sampled_from(PIECES), st.integers(1, 255)), min_size=1, max_size=4)


def mutated(content, mutations):
    """content after some mutations, each at its place (a share of the length)."""
    for kind, place, length, piece, mask in mutations:
        begin = int(place * len(content))
        end = begin + int(length ** 4 * (len(content) - begin)) + 1
        if kind == "insert":
            content = content[:begin] + piece + content[begin:]
        elif kind == "delete":
            content = content[:begin] + content[end:]
        elif kind == "repeat":
            content = content[:end] + content[begin:]
        elif kind == "cut":
            content = content[:begin]
        elif begin < len(content):
            content = content[:begin] + bytes([content[begin] ^ mask]) + content[begin + 1:]
    return content

"""What test_datagrams has programs do: the calls of the kernel with memory of their own.

To be put in front of a program: it has nothing but the standard library.
"""

CODE = r'''
import array, ctypes, errno, fcntl, os, select, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
U, S4, S6 = socket.SOCK_DGRAM, socket.AF_INET, socket.AF_INET6
MX = [0]

def query(name, kind=1):
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + labels + struct.pack("!BHH", 0, kind, 1)

def raw(host, port):
    if ":" in host:
        head = struct.pack("=H", S6) + struct.pack("!HI", port, 0)
        return head + socket.inet_pton(S6, host) + bytes(4)
    return struct.pack("=H", S4) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)

def address(answer):
    """The address in an answer with one."""
    assert answer[:2] == b"\x12\x34" and answer[7] == 1, answer
    size = answer[-5] if answer[-5] == 4 else 16
    return socket.inet_ntop(S4 if size == 4 else S6, answer[-size:])

def failing(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "nothing"

class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

class Header(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("length", ctypes.c_uint),
                ("parts", ctypes.POINTER(Part)), ("count", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("controls", ctypes.c_size_t),
                ("flags", ctypes.c_int)]

class Many(ctypes.Structure):
    _fields_ = [("header", Header), ("sent", ctypes.c_uint)]

def header(data, name):
    """One for data in three parts, and all that it refers to."""
    pieces = [ctypes.create_string_buffer(one, len(one)) for one in (data[:5], b"", data[5:])]
    parts = (Part * 3)(*[Part(ctypes.addressof(one), len(one)) for one in pieces])
    held = ctypes.create_string_buffer(name, len(name)) if name else None
    place = ctypes.addressof(held) if name else None
    return Header(place, len(name), parts, 3, None, 0, 0), (pieces, parts, held)

def done(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def send_to(sock, data, name):
    held = ctypes.create_string_buffer(name, len(name))
    return done(libc.sendto(sock.fileno(), data, len(data), 0, held, len(name))), held.raw

def send_message(sock, data, name=b""):
    one, kept = header(data, name)
    sent = done(libc.sendmsg(sock.fileno(), ctypes.byref(one), 0))
    return sent, kept[2].raw if name else b""

def send_messages(sock, datas, name=b""):
    made = [header(data, name) for data in datas]
    many = (Many * len(made))(*[Many(one, 77) for one, _ in made])
    count = done(libc.sendmmsg(sock.fileno(), many, len(made), 0))
    return count, [one.sent for one in many], [kept[2].raw if name else b"" for _, kept in made]
'''

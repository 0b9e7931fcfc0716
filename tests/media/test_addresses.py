"""Where a download may connect to, and every trick that leads elsewhere: told and for real."""

import ipaddress
from datetime import timedelta
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.sinks import MemorySink
from worker.ground.errors import MediaRefusedError, MediaUnavailableError
from worker.media.download import DownloadLimits, download_video
from worker.media.hosts import (
    check_media_place,
    find_addresses,
    leads_to,
    may_connect,
    parse_media_hosts,
)
from worker.media.pinned import MediaClient

MINUTE = timedelta(minutes=1)
LIMITS = DownloadLimits(timedelta(seconds=30), 1024 * 1024)

NEVER = {
    "unspecified": "0.0.0.0",
    "this network": "0.1.2.3",
    "broadcast": "255.255.255.255",
    "reserved": "240.0.0.1",
    "unspecified of version 6": "::",
    # wherever a cloud has its metadata service
    "link-local": "169.254.169.254",
    "link-local of version 6": "fe80::a9fe:a9fe",
    "metadata of AWS in version 6": "fd00:ec2::254",
    "metadata of Google in version 6": "fd20:ce::254",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Oracle": "192.0.0.192",
    "metadata of Azure": "168.63.129.16",
    "multicast": "224.0.0.1",
    "multicast of version 6": "ff02::1",
    "mapped": "::ffff:127.0.0.1",
    "mapped and public": "::ffff:8.8.8.8",
    "translated": "::ffff:0:127.0.0.1",
    "compatible": "::127.0.0.1",
    "6to4": "2002:a9fe:a9fe::1",
    "6to4 relay": "192.88.99.1",
    "AS112": "192.175.48.1",
    "AS112 by DNAME": "192.31.196.1",
    "AS112 of version 6": "2620:4f:8000::1",
    "AS112 by DNAME of version 6": "2001:4:112::1",
    "Teredo": "2001:0:7f00:1::",
    "NAT64": "64:ff9b::169.254.169.254",
    "NAT64 of a site": "64:ff9b:1::8.8.8.8",
    "ISATAP": "fe80::5efe:127.0.0.1",
    "documentation": "192.0.2.1",
    "documentation of version 6": "2001:db8::1",
    "benchmarks": "198.18.0.1",
    "discard": "100::1",
    "site-local": "fec0::1",
    "segment routing": "5f00::1",
    "not given out": "4000::1",
    "with a zone": "2606:4700::1%1",
    "short": "127.1",
    "one number": "2130706433",
    "octal": "0177.0.0.1",
    "with a final dot": "127.0.0.1.",
    "empty": "",
    "a name": "localhost",
}
NEAR = {
    "loopback": ("127.0.0.1", "127.255.255.254"),
    "private 10": ("10.0.0.1", "10.255.255.255"),
    "private 172": ("172.16.0.1", "172.31.255.255"),
    "private 192": ("192.168.0.1", "192.168.255.255"),
    "shared": ("100.64.0.1", "100.127.255.255"),
    "loopback of version 6": ("::1", "::1"),
    "unique local": ("fc00::1", "fd12:3456::1"),
}
PUBLIC = {
    "beside private 10": ("9.255.255.255", "11.0.0.1"),
    "beside shared": ("100.63.255.255", "100.128.0.0"),
    "beside private 172": ("172.15.255.255", "172.32.0.0"),
    "beside multicast": ("223.255.255.255", "1.1.1.1"),
    "version 6": ("2606:4700:4700::1111", "2a00:1450:4001:80b::200e"),
    "NAT64": ("64:ff9b::8.8.8.8", "64:ff9b::1.1.1.1"),
}


@pytest.mark.parametrize(
    ("url", "addresses", "leads"),
    [
        ("https://v3.fal.media/a", ["8.8.8.8"], True),
        ("https://v3.fal.media/a", [], True),
        ("https://v3.fal.media/a", ["8.8.8.8", "10.0.0.1"], False),
        ("https://fal.media.example/a", ["8.8.8.8"], False),
        ("http://v3.fal.media/a", ["8.8.8.8"], False),
        ("https://10.0.0.1:8443/a", [], True),
        ("https://10.0.0.2:8443/a", [], False),
    ],
)
def test_url_leads_to_hosts_that_are_named_and_to_addresses_that_are_public_or_meant(
    url, addresses, leads
):
    hosts = parse_media_hosts("*.fal.media,10.0.0.1:8443")
    resolved = leads_to(url, hosts, lambda _host, _port: addresses, timedelta(seconds=1))
    assert resolved is leads


@pytest.mark.parametrize("kind", NEVER)
def test_may_connect_to_what_nobody_may_reach_is_false_however_named(kind):
    assert not may_connect(NEVER[kind], is_pointed=True)
    assert not may_connect(NEVER[kind], is_pointed=False)


@pytest.mark.parametrize("kind", NEAR)
def test_may_connect_nearby_only_to_a_host_that_was_pointed_at(kind):
    for address in NEAR[kind]:
        assert may_connect(address, is_pointed=True)
        assert not may_connect(address, is_pointed=False)


@pytest.mark.parametrize("kind", PUBLIC)
def test_may_connect_to_a_public_address_is_true(kind):
    for address in PUBLIC[kind]:
        assert may_connect(address, is_pointed=True)
        assert may_connect(address, is_pointed=False)


WRAPPED = ipaddress.IPv6Network("64:ff9b::/96")
public = st.ip_addresses().filter(lambda address: may_connect(str(address), is_pointed=False))


@given(public)
def test_may_connect_unpointed_allows_no_address_that_python_knows_as_special(address):
    if address in WRAPPED:
        address = ipaddress.IPv4Address(address.packed[-4:])
    assert address.is_global
    assert not address.is_multicast
    assert not address.is_reserved
    assert not address.is_link_local


@given(st.ip_addresses(v=4))
def test_may_connect_to_nat64_is_as_to_what_it_wraps(address):
    wrapped = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | int(address))
    is_public = may_connect(str(address), is_pointed=False)
    assert may_connect(str(wrapped), is_pointed=True) is is_public


@given(st.ip_addresses(v=4))
def test_may_connect_to_mapped_compatible_and_6to4_is_false(address):
    number = int(address)
    for wrapped in (number | 0xFFFF << 32, number, 0x2002 << 112 | number << 80):
        if wrapped != 1:  # ::1
            assert not may_connect(str(ipaddress.IPv6Address(wrapped)), is_pointed=True)


@given(st.text(max_size=40))
def test_may_connect_to_any_text_that_is_no_address_is_false(text):
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert not may_connect(text, is_pointed=True)


# ------------------------------------------------------------------ finding them


def resolve_to(*addresses):
    return lambda _host, _port: addresses


def find(url, hosts, resolve, limit=MINUTE):
    return find_addresses(check_media_place(url, parse_media_hosts(hosts)), resolve, limit)


def test_find_addresses_gives_each_once_in_their_order():
    found = find(
        "https://v3.fal.media/x", "*.fal.media", resolve_to("8.8.8.8", "1.1.1.1", "8.8.8.8")
    )
    assert found == ("8.8.8.8", "1.1.1.1")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_find_addresses_with_one_bad_among_good_is_refused_whole(place):
    addresses = ["8.8.8.8", "1.1.1.1"]
    addresses.insert(place, "10.0.0.1")
    with pytest.raises(MediaRefusedError, match=r"leads to .*, which is no public address"):
        find("https://v3.fal.media/x", "*.fal.media", resolve_to(*addresses))


@pytest.mark.parametrize(
    ("hosts", "url", "is_allowed"),
    [
        ("minio.local:9000", "http://minio.local:9000/x", True),
        ("cdn.example:443", "https://cdn.example/x", True),
        ("cdn.example", "https://cdn.example/x", False),
        ("*.cdn.example", "https://a.cdn.example/x", False),
        ("*.cdn.example:8123", "http://a.cdn.example:8123/x", False),
        # the most that any entry says of it holds
        ("*.cdn.example,a.cdn.example:443", "https://a.cdn.example/x", True),
        ("*.cdn.example,b.cdn.example:443", "https://a.cdn.example/x", False),
    ],
)
def test_find_addresses_nearby_needs_a_name_with_its_port(hosts, url, is_allowed):
    address = "192.168.1.1"
    if is_allowed:
        assert find(url, hosts, resolve_to(address)) == (address,)
        return
    with pytest.raises(MediaRefusedError, match="no public address"):
        find(url, hosts, resolve_to(address))


@pytest.mark.parametrize(
    ("hosts", "url", "address"),
    [
        ("127.0.0.1:8123", "http://127.0.0.1:8123/x", "127.0.0.1"),
        ("[fc00::1]", "https://[FC00:0::1]/x", "fc00::1"),
        ("8.8.8.8", "https://8.8.8.8/x", "8.8.8.8"),
    ],
)
def test_find_addresses_of_an_address_is_itself_without_any_look_up(hosts, url, address):
    def fail(*_):
        raise AssertionError("looked up")

    assert find(url, hosts, fail) == (address,)


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:127.0.0.1]"])
def test_find_addresses_of_a_forbidden_address_is_refused_though_an_entry_names_it(host):
    with pytest.raises(MediaRefusedError, match="no public address"):
        find(f"http://{host}:80/x", f"{host}:80", resolve_to())


@pytest.mark.parametrize("error", [OSError("away"), UnicodeError("label too long")])
def test_find_addresses_that_cannot_be_resolved_is_unavailable(error):
    def fail(*_):
        raise error

    with pytest.raises(MediaUnavailableError, match="cannot be resolved"):
        find("https://v3.fal.media/x", "*.fal.media", fail)


def test_find_addresses_of_none_is_unavailable():
    with pytest.raises(MediaUnavailableError, match="has no address"):
        find("https://v3.fal.media/x", "*.fal.media", resolve_to())


def test_find_addresses_of_a_resolver_that_hangs_is_unavailable_at_the_limit():
    answered = Event()

    def hang(*_):
        answered.wait(60)
        return ["8.8.8.8"]

    with pytest.raises(MediaUnavailableError, match="not resolved in time"):
        find("https://v3.fal.media/x", "*.fal.media", hang, timedelta(seconds=0.05))
    answered.set()


# ------------------------------------------------------------------ the whole way


class Names:
    """A resolver whose answers a test writes: each look-up takes the next, the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(some) for name, some in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def fetch(url, hosts, names):
    client = MediaClient(resolve=names, sleep=lambda _: None)
    sink = MemorySink()
    download_video(url, sink, client=client, hosts=parse_media_hosts(hosts), limits=LIMITS)
    return bytes(sink.content)


def redirect_to(location):
    return lambda handler: handler.answer(302, Location=location, Content_Length="0")


def send_video(handler):
    handler.answer(Content_Length="5")
    handler.wfile.write(b"video")


def test_download_connects_to_the_checked_address_and_names_the_host(server):
    """A name that no resolver of this machine knows: only the given address can have been used."""
    server.serve("/v", send_video)
    place = f"cdn.invalid:{server.server_port}"
    names = Names(cdn_invalid=[["127.0.0.1"]])
    assert fetch(f"http://{place}/v", place, names) == b"video"
    assert names.asked == ["cdn.invalid"]
    assert server.received[0]["Host"] == place


def test_download_from_a_rebinding_host_never_asks_the_second_address(server, start_server):
    """The name leads elsewhere at its second look-up, which the resumption makes and refuses."""

    def break_off(handler):
        handler.answer(Content_Length="1000", ETag='"1"')
        handler.wfile.write(b"half")

    server.serve("/v", break_off)
    port = server.server_port
    names = Names(cdn_invalid=[["127.0.0.1"], ["127.0.0.1", "169.254.169.254"]])
    with pytest.raises(MediaRefusedError, match=r"leads to 169\.254\.169\.254"):
        fetch(f"http://cdn.invalid:{port}/v", f"cdn.invalid:{port}", names)
    assert len(server.received) == 1
    assert names.asked == ["cdn.invalid"] * 2


def test_download_from_a_wildcard_host_on_this_machine_is_refused_unasked(server):
    server.serve("/v", send_video)
    port = server.server_port
    names = Names(v3_cdn_invalid=[["127.0.0.1"]])
    with pytest.raises(MediaRefusedError, match="no public address"):
        fetch(f"http://v3.cdn.invalid:{port}/v", f"*.cdn.invalid:{port}", names)
    assert server.received == []


def test_download_redirected_to_a_host_that_leads_inside_is_refused_unasked(server, start_server):
    inner = start_server()
    inner.serve("/v", send_video)
    target = f"http://a.cdn.invalid:{inner.server_port}/v"
    server.serve("/old", redirect_to(target))
    hosts = f"{server.place},*.cdn.invalid:{inner.server_port}"
    with pytest.raises(MediaRefusedError, match=r"leads to 127\.0\.0\.1"):
        fetch(f"http://{server.place}/old", hosts, Names(a_cdn_invalid=[["127.0.0.1"]]))
    assert inner.received == []


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "//169.254.169.254/",
        "https://user:secret@127.0.0.1/",
        "file:///etc/passwd",
        "data:video/mp4;base64,AAAA",
    ],
)
def test_download_redirected_inside_is_refused(server, location):
    server.serve("/old", redirect_to(location))
    with pytest.raises((MediaRefusedError, MediaUnavailableError)):
        fetch(f"http://{server.place}/old", f"{server.place},*.fal.media", Names())
    assert len(server.received) == 1


def test_download_redirected_beside_itself_is_followed_and_resolved_anew(server):
    server.serve("/a/old", redirect_to("../b/v?x=%20#fragment"))
    server.serve("/b/v?x=%20", send_video)
    place = f"cdn.invalid:{server.server_port}"
    names = Names(cdn_invalid=[["127.0.0.1"]])
    assert fetch(f"http://{place}/a/old", place, names) == b"video"
    assert names.asked == ["cdn.invalid"] * 2


def test_download_tries_the_next_address_if_one_takes_no_connection(server):
    server.serve("/v", send_video)
    place = f"cdn.invalid:{server.server_port}"
    names = Names(cdn_invalid=[["127.0.0.2", "::1", "127.0.0.1"]])
    assert fetch(f"http://{place}/v", place, names) == b"video"

"""Which hosts a video may be downloaded from: FAL_MEDIA_HOSTS, and no address in disguise."""

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ground.errors import MediaRefusedError
from worker.media.hosts import MediaHosts, check_media_place, parse_media_hosts

FAL = parse_media_hosts("*.fal.media")


def is_refused(url: str, hosts: MediaHosts = FAL) -> bool:
    try:
        check_media_place(url, hosts)
    except MediaRefusedError:
        return True
    return False


@pytest.mark.parametrize(
    "url",
    [
        "https://v3.fal.media/files/b/x.mp4",
        "https://V3B.FAL.MEDIA/x.mp4",
        "https://v3.fal.media:443/x.mp4?signature=1",
        "https://xn--bcher-kva.fal.media/x.mp4",
    ],
)
def test_check_media_place_below_wildcard_returns_it(url):
    assert check_media_place(url, FAL).host.endswith(".fal.media")


@pytest.mark.parametrize(
    "urls",
    [
        pytest.param(
            [
                *("https://fal.media/x", "https://evilfal.media/x", "https://.fal.media/x"),
                *("https://v3.fal.media.evil.example/x", "https://evil.example?.fal.media"),
                *("https://evil.example%2f.fal.media/x", "https://evil.example\\.fal.media/x"),
                *("https://evil.example\u2044.fal.media@127.0.0.1/", "https://v3%2efal.media/x"),
                *("https://v3.fal.media./x", "https://*.fal.media/x"),
                *(f"https://{'a' * 64}.fal.media/x", "https://\u24e5.fal.media/x"),
            ],
            id="names that only look like it",
        ),
        pytest.param(
            [
                *("http://v3.fal.media/x", "file:///etc/passwd", "data:video/mp4;base64,AAAA"),
                *("https://v3.fal.media:8443/x", "https://v3.fal.media:99999/x"),
                *("//v3.fal.media/x", "v3.fal.media", "", "https://\ud800.fal.media/"),
                "https://v3.fal.media/\r\nHost: evil.example",
            ],
            id="other schemes, ports and shapes",
        ),
        pytest.param(
            ["https://user:secret@v3.fal.media/x", "https://v3.fal.media@evil.example/x"],
            id="credentials",
        ),
        pytest.param(
            [
                *("https://127.0.0.1/x", "https://127.1/x", "https://2130706433/x"),
                *("https://10.0.0.1/x", "http://169.254.169.254/latest/meta-data"),
                *("https://[::1]/x", "https://[::ffff:127.0.0.1]/x", "https://[fe80::1%25eth0]/x"),
            ],
            id="this machine and its neighbours",
        ),
    ],
)
def test_check_media_place_of_stranger_is_refused(urls):
    assert [url for url in urls if not is_refused(url)] == []


@pytest.mark.parametrize(
    ("hosts", "taken", "refused"),
    [
        (
            "127.0.0.1:8123",
            ["http://127.0.0.1:8123/x", "https://127.0.0.1:8123/x"],
            [
                *("http://127.0.0.1:8124/x", "http://127.0.0.1/x", "http://127.0.0.1.:8123/x"),
                *("http://[::ffff:127.0.0.1]:8123/x", "http://localhost:8123/x"),
            ],
        ),
        ("127.0.0.1", ["https://127.0.0.1/x"], ["http://127.0.0.1/x"]),
        ("[::1]:80", ["http://[::1]/x"], ["http://[::2]:80/x"]),
        ("[0:0:0:0:0:0:0:1]", ["https://[::1]/x"], ["https://[::2]/x"]),
        ("LocalHost:8123", ["http://localhost:8123/x"], ["http://localhost/x"]),
        ("*.cdn.example:81", ["http://eu.cdn.example:81/x"], ["http://cdn.example:81/x"]),
        ("*.fal.media , cdn.example", ["https://cdn.example/x"], ["https://eu.cdn.example/x"]),
    ],
)
def test_check_media_place_takes_the_named_host_and_port_only(hosts, taken, refused):
    allowed = parse_media_hosts(hosts)
    assert [check_media_place(url, allowed).url.path for url in taken] == ["/x"] * len(taken)
    assert [url for url in refused if not is_refused(url, allowed)] == []


def test_check_media_place_refusal_keeps_path_and_query_secret():
    with pytest.raises(MediaRefusedError) as refusal:
        check_media_place("https://evil.example/private?signature=secret", FAL)

    assert str(refusal.value) == (
        "https://evil.example:443 is not allowed by FAL_MEDIA_HOSTS (*.fal.media)"
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "fal.media,", "https://fal.media", "fal.media/files", "user@fal.media"),
        *("[fe80::1%eth0]", "*", "v3.*.media", "*..fal.media", "fal.media.", "b\u00fccher.example"),
        *("127.1", "[1::2::3]", "[fal.media]:80", "::1", ":80", "*.127.0.0.1", "*.[::1]"),
        *("fal.media:", "fal.media:0", "fal.media:65536", "fal.media:\u0661"),
    ],
)
def test_parse_media_hosts_bad_entry_is_named_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="must be an ASCII host name") as refusal:
        parse_media_hosts(text)
    assert repr(text.rpartition(",")[2]) in str(refusal.value)


labels = st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
ports = st.none() | st.integers(1, 65535)


@st.composite
def entries(draw):
    host = draw(names | names.map(lambda name: f"*.{name}") | addresses)
    port = draw(ports)
    return host if port is None else f"{host}:{port}"


@given(st.lists(entries(), min_size=1, max_size=5).map(",".join))
def test_parse_media_hosts_of_its_own_text_gives_the_same_value(text):
    hosts = parse_media_hosts(text)

    assert parse_media_hosts(str(hosts)) == hosts


@given(st.text(alphabet=string.printable + "\u00fc\u3002", max_size=40))
def test_parse_media_hosts_of_any_text_reads_back_or_raises_value_error(text):
    try:
        hosts = parse_media_hosts(text)
    except ValueError:
        return
    assert parse_media_hosts(str(hosts)) == hosts


@given(st.text(max_size=60) | st.text(max_size=30).map(lambda text: f"https://{text}.fal.media/"))
def test_check_media_place_of_any_text_returns_fal_host_or_refuses(url):
    if is_refused(url):
        return
    checked = check_media_place(url, FAL).url
    assert checked.scheme == "https"
    assert checked.port in {None, 443}
    assert checked.raw_host.endswith(b".fal.media")


@given(names)
def test_check_media_place_exact_entry_allows_that_name_only(name):
    hosts = parse_media_hosts(name)

    assert check_media_place(f"https://{name.upper()}/", hosts).host == name
    for other in (f"x.{name}", f"x{name}", f"{name}x", f"{name}.x"):
        assert is_refused(f"https://{other}/", hosts)


@given(st.ip_addresses(v=4))
def test_check_media_place_address_in_other_notation_is_refused(address: ipaddress.IPv4Address):
    hosts = parse_media_hosts(str(address))
    octets = address.packed

    assert check_media_place(f"https://{address}/", hosts).host == str(address)
    for spelling in (
        str(int(address)),
        hex(int(address)),
        ".".join(map(hex, octets)),
        ".".join(f"0{octet:o}" for octet in octets),
        f"[::ffff:{address}]",
    ):
        assert is_refused(f"https://{spelling}/", hosts)

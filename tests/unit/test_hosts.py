import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import MediaRefusedError
from worker.media.hosts import check_media_url, parse_media_hosts

FAL = parse_media_hosts("*.fal.media")


@pytest.mark.parametrize(
    "url",
    [
        "https://v3.fal.media/files/b/x.mp4",
        "https://V3B.FAL.MEDIA/x.mp4",
        "https://v3.fal.media:443/x.mp4?signature=1",
        "https://xn--bcher-kva.fal.media/x.mp4",
    ],
)
def test_check_media_url_below_wildcard_returns_it(url):
    assert check_media_url(url, FAL).host.endswith(".fal.media")


@pytest.mark.parametrize(
    "url",
    [
        # names that only look like it
        "https://fal.media/x",
        "https://evilfal.media/x",
        "https://v3.fal.media.evil.example/x",
        "https://evil.example?.fal.media",
        "https://evil.example%2f.fal.media/x",
        "https://evil.example\\.fal.media/x",
        "https://evil.example\u2044.fal.media@127.0.0.1/",
        "https://v3%2efal.media/x",
        "https://v3.fal.media./x",
        "https://.fal.media/x",
        "https://*.fal.media/x",
        f"https://{'a' * 64}.fal.media/x",
        "https://\u24e5.fal.media/x",
        # other schemes, ports and shapes
        "http://v3.fal.media/x",
        "https://v3.fal.media:8443/x",
        "https://v3.fal.media:99999/x",
        "file:///etc/passwd",
        "data:video/mp4;base64,AAAA",
        "//v3.fal.media/x",
        "v3.fal.media",
        "",
        "https://v3.fal.media/\r\nHost: evil.example",
        "https://\ud800.fal.media/",
        # credentials
        "https://user:secret@v3.fal.media/x",
        "https://v3.fal.media@evil.example/x",
        # this machine and its neighbours, in many spellings
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://10.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[fe80::1%25eth0]/x",
    ],
)
def test_check_media_url_of_stranger_is_refused(url):
    with pytest.raises(MediaRefusedError):
        check_media_url(url, FAL)


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        ("127.0.0.1:8123", "http://127.0.0.1:8123/x"),
        ("127.0.0.1:8123", "https://127.0.0.1:8123/x"),
        ("[::1]:80", "http://[::1]/x"),
        ("[0:0:0:0:0:0:0:1]", "https://[::1]/x"),
        ("LocalHost:8123", "http://localhost:8123/x"),
        ("*.cdn.example:8123", "http://eu.cdn.example:8123/x"),
        ("*.fal.media , cdn.example", "https://cdn.example/x"),
    ],
)
def test_check_media_url_named_host_and_port_returns_it(hosts, url):
    assert check_media_url(url, parse_media_hosts(hosts)).path == "/x"


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        ("127.0.0.1:8123", "http://127.0.0.1:8124/x"),
        ("127.0.0.1:8123", "http://127.0.0.1/x"),
        ("127.0.0.1:8123", "http://127.0.0.1.:8123/x"),
        ("127.0.0.1:8123", "http://[::ffff:127.0.0.1]:8123/x"),
        ("127.0.0.1:8123", "http://localhost:8123/x"),
        ("127.0.0.1", "http://127.0.0.1/x"),
        ("cdn.example", "https://eu.cdn.example/x"),
        ("[::1]:80", "http://[::2]:80/x"),
    ],
)
def test_check_media_url_beside_named_host_is_refused(hosts, url):
    with pytest.raises(MediaRefusedError, match=r"not allowed by FAL_MEDIA_HOSTS|no plain host"):
        check_media_url(url, parse_media_hosts(hosts))


def test_check_media_url_refusal_keeps_path_and_query_secret():
    with pytest.raises(MediaRefusedError) as refusal:
        check_media_url("https://evil.example/private?signature=secret", FAL)

    assert str(refusal.value) == (
        "https://evil.example:443 is not allowed by FAL_MEDIA_HOSTS (*.fal.media)"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("fal.media,", "empty"),
        ("https://fal.media", "scheme"),
        ("fal.media/files", "'/' is not allowed"),
        ("user@fal.media", "'@' is not allowed"),
        ("[fe80::1%eth0]", "'%' is not allowed"),
        ("*", "first label"),
        ("v3.*.media", "first label"),
        ("*..fal.media", "neither"),
        ("fal.media.", "neither"),
        ("b\u00fccher.example", "neither"),
        ("127.1", "neither"),
        ("[1::2::3]", "neither"),
        ("[fal.media]:80", "neither"),
        ("::1", "brackets"),
        (":80", "brackets"),
        ("*.127.0.0.1", "before an IP address"),
        ("fal.media:", "port"),
        ("fal.media:65536", "port"),
        ("fal.media:\u0661", "port"),
    ],
)
def test_parse_media_hosts_bad_entry_names_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_media_hosts(text)


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
def test_check_media_url_of_any_text_returns_fal_host_or_refuses(url):
    try:
        checked = check_media_url(url, FAL)
    except MediaRefusedError:
        return
    assert checked.scheme == "https"
    assert checked.port in {None, 443}
    assert checked.raw_host.endswith(b".fal.media")


@given(names)
def test_check_media_url_exact_entry_allows_that_name_only(name):
    hosts = parse_media_hosts(name)

    assert check_media_url(f"https://{name.upper()}/", hosts).host == name
    for other in (f"x.{name}", f"x{name}", f"{name}x", f"{name}.x"):
        with pytest.raises(MediaRefusedError):
            check_media_url(f"https://{other}/", hosts)


@given(st.ip_addresses(v=4))
def test_check_media_url_address_in_other_notation_is_refused(address: ipaddress.IPv4Address):
    hosts = parse_media_hosts(str(address))
    octets = address.packed

    assert check_media_url(f"https://{address}/", hosts).host == str(address)
    for spelling in (
        str(int(address)),
        hex(int(address)),
        ".".join(map(hex, octets)),
        ".".join(f"0{octet:o}" for octet in octets),
        f"[::ffff:{address}]",
    ):
        with pytest.raises(MediaRefusedError):
            check_media_url(f"https://{spelling}/", hosts)

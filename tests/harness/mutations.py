"""Webhook POSTs spoilt on purpose: drawn by a seed, so that each can be made again."""

import base64
import hashlib
import random
from dataclasses import dataclass, field, replace

from tests.harness.jobs import REQUEST_ID, TOKEN
from tests.harness.posts import SIGNED, Post, drop, swap, write_post
from tests.harness.spoiling import (
    Rng,
    draw_content,
    draw_shapeless,
    dress,
    spoil_bytes,
    spoil_time,
    spoil_value,
)
from tests.harness.webhooks import (
    OTHER_KEY,
    PREFIX,
    USER_ID,
    SignedDelivery,
    build_body,
    build_delivery,
)

OTHER_TOKEN, OTHER_REQUEST_ID = "the-token-of-another-job", "9e107d9d-0000-4000-8000-00000000bbbb"
METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "post", "FOO", "P OST")
ORDER_OF_CURVE = 2**252 + 27742317777372353535851937790883648493


@dataclass(frozen=True)
class Mutator:
    """Spoils deliveries to the job with TOKEN; that with OTHER_TOKEN stands beside it."""

    limit: int
    delivery: SignedDelivery = field(default_factory=build_delivery)
    other: SignedDelivery = field(
        default_factory=lambda: build_delivery(
            build_body(request_id=OTHER_REQUEST_ID), token=OTHER_TOKEN, request_id=OTHER_REQUEST_ID
        )
    )

    def draw(self, seed: str) -> Post:
        """A post that proves nothing; the same one for the same seed, but for its time."""
        rng = random.Random(seed)
        while True:
            if rng.random() < 0.35:
                post = write_post(self._sign_in_vain(rng))
            else:
                post = self._spoil(rng, write_post(rng.choice([self.delivery, self.other])))
            if not any(post.means_same_as(one) for one in (self.delivery, self.other)):
                return dress(rng, post)

    def _spoil(self, rng: Rng, post: Post) -> Post:
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            spoil = rng.choice(
                [self._spoil_header, self._spoil_header, self._spoil_body, self._spoil_way]
            )
            post = spoil(rng, post)
        return post

    def _spoil_header(self, rng: Rng, post: Post) -> Post:
        name = PREFIX + rng.choice([*SIGNED, "Signature", "Timestamp"])
        value = post.find(name) or ""
        match rng.randrange(5):
            case 0:
                return replace(post, headers=drop(post.headers, name))
            case 1:
                copy = value if rng.random() < 0.5 else spoil_value(rng, value)
                extra = ((rng.choice([name, name.lower(), name.upper()]), copy),)
                headers = rng.choice([post.headers + extra, extra + post.headers])
                return replace(post, headers=headers)
            case 2 if name.endswith("Timestamp"):
                return swap(post, name, spoil_time(rng, value))
            case 2 if name.endswith("Signature"):
                return swap(post, name, self._spoil_signature(rng, value))
            case 3:
                alien = rng.choice([self.delivery, self.other]).headers[name]
                return swap(post, name, alien)
            case _:
                return swap(post, name, spoil_value(rng, value))

    def _spoil_signature(self, rng: Rng, value: str) -> str:
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            return value[::-1]
        point, scalar = raw[:32], int.from_bytes(raw[32:], "little")
        malleable = (scalar + ORDER_OF_CURVE) % 2**256
        flipped = bytearray(raw or b"\0")
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return rng.choice(
            [
                flipped.hex(),
                raw[::-1].hex(),
                (raw[32:] + raw[:32]).hex(),
                (point + malleable.to_bytes(32, "little")).hex(),
                (b"\1" + bytes(63)).hex(),
                bytes(64).hex(),
                b"\xff".hex() * 64,
                raw.hex() + "00",
                raw.hex()[:-1],
                base64.b64encode(raw).decode(),
                f"sha256={raw.hex()}",
                rng.randbytes(64).hex(),
            ]
        )

    def _spoil_body(self, rng: Rng, post: Post) -> Post:
        return replace(post, body=spoil_bytes(rng, post.body, self.limit))

    def _spoil_way(self, rng: Rng, post: Post) -> Post:
        match rng.randrange(8):
            case 0:
                return replace(post, method=rng.choice(METHODS))
            case 1:
                lengths = ["0", "-1", "abc", "+5", " 5", "1.0", "\xb2", "9" * 30, "1,1"]
                size = len(post.body)
                near = [str(size - 1), str(size + 1), str(self.limit), str(self.limit + 1)]
                return replace(post, length=rng.choice(lengths + near))
            case 2:
                return replace(post, chunked=True, body=spoil_bytes(rng, post.body, self.limit))
            case _:
                return replace(post, target=self._spoil_target(rng, post.target))

    def _spoil_target(self, rng: Rng, target: str) -> str:
        head, _, token = target.rpartition("/")
        place = rng.randrange(len(token) + 1)
        odd = rng.choice(
            ["%00", "%0a", "%ff", "%2f", "/", "..", "%2e%2e%2f", " ", "\xfc", "%", "+"]
        )
        swapped = f"{token[:place]}{chr(33 + rng.randrange(94))}{token[place + 1 :]}"
        tokens = [
            "",
            token[:place],
            token + odd,
            odd + token,
            token[:place] + odd + token[place:],
            token.swapcase(),
            token[::-1],
            token * rng.choice([2, 50, 2000]),
            swapped.replace("?", "!"),
            rng.choice([TOKEN, OTHER_TOKEN]),
            hashlib.sha256(token.encode()).hexdigest(),
            base64.b64encode(token.encode()).decode(),
            f"{token}%20",
            f"{token}.json",
            f"x/../{token}",
            f"{token};a=b",
            "*",
            "'%20OR%201=1--",
            "\xf0\x9f\x98\x80",
        ]
        heads = [head] * 12 + [f"/{head}", f"{head}/", head.upper(), "", "/webhooks", f"{head}/.."]
        return f"{rng.choice(heads)}/{rng.choice(tokens)}"

    def _sign_in_vain(self, rng: Rng) -> SignedDelivery:
        """Properly signed, or nearly: by a wrong key, for another user, request, token or shape."""
        content = draw_content(rng)
        match rng.randrange(6):
            case 0:
                return build_delivery(content | {"status": "OK"}, key=OTHER_KEY)
            case 1:
                users = [USER_ID.upper(), f"{USER_ID}x", "0", "\x7f" * 9, "x" * 300]
                return build_delivery(content, user_id=rng.choice(users))
            case 2:
                # Genuine, and of a request that is no attempt's.
                alien = rng.choice(["x", "\xfc", "a" * 400, OTHER_REQUEST_ID, REQUEST_ID.upper()])
                return build_delivery(content | {"request_id": alien}, request_id=alien)
            case 3:
                return build_delivery(content | {"request_id": f"{REQUEST_ID}x"})
            case 4:
                tokens = [OTHER_TOKEN, TOKEN.upper(), "nobody's", "%00"]
                return build_delivery(content, token=rng.choice(tokens))
            case _:
                return build_delivery(draw_shapeless(rng, self.limit))

"""Examples under the help of each command; a test parses every one of them."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "enqueue": (
        'extend-video enqueue --prompt "The camera rises" --video my.mp4 --wait',
        'extend-video enqueue --prompt "Dawn" --video a.mp4 --set num_frames=241 --label env=prod',
        'extend-video enqueue --prompt "Dusk falls" --video a.mp4 --idempotency-key order-7 --json',
        "extend-video enqueue --from wishes.jsonl",
    ),
    "list": (
        "extend-video list --state failed --since 24h",
        "extend-video list --tenant studio --label env=prod --watch",
        "extend-video list --text order-7 --json",
    ),
    "refused": (
        "extend-video refused --limit 10",
        "extend-video refused --tenant studio --json",
    ),
    "show": (
        "extend-video show 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69",
        "extend-video show 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69 --wait",
        "extend-video show 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69 --logs --json",
    ),
    "cancel": (
        "extend-video cancel 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69",
        "extend-video cancel --state queued --tenant studio --dry-run",
        "extend-video cancel --label campaign=spring --since 2h --yes --json",
    ),
    "redrive": (
        "extend-video redrive 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69",
        "extend-video redrive --state failed --since 24h --dry-run",
        "extend-video redrive --state failed --tenant studio --pay-again",
    ),
    "sweep": ("extend-video sweep", "extend-video sweep --json"),
    "doctor": ("extend-video doctor", "extend-video doctor --all --hours 48 --json"),
    "migrate": ("extend-video migrate", "extend-video migrate --json"),
    "schema": ("extend-video schema", "extend-video schema --file openapi.json --strict-defaults"),
    "verify": (
        "extend-video verify",
        "extend-video verify --sample 500 --tenant studio --json",
        "extend-video verify --not-since 2026-11-24T18:30:00Z",
        "extend-video verify --orphans",
    ),
    "rearchive": (
        "extend-video rearchive 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69",
        "extend-video rearchive 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69 --force --json",
    ),
    "prune": (
        "extend-video prune --older-than 90d --dry-run",
        "extend-video prune --older-than 30d --tenant studio --label env=test --files-only",
        "extend-video prune --older-than 12h --state failed --state cancelled --yes --json",
    ),
    "replay": (
        "extend-video replay 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69.json --wait",
        'extend-video replay my.json --set "prompt=Dusk falls" --set seed=8 --dry-run',
        "extend-video replay - --json",
    ),
    "restore": (
        "extend-video restore --since 2026-11-24T18:30 --dry-run",
        "extend-video restore --since 2026-11-24T18:30 --json",
    ),
    "status": ("extend-video status", "extend-video status --json"),
    "up": ("extend-video up", "extend-video up --host 0.0.0.0 --port 8080"),
    "demo": ("extend-video demo", 'extend-video demo --video my.mp4 --prompt "The camera rises"'),
    "emulator": ("extend-video emulator --port 9000", "extend-video emulator --help"),
}


def show_examples(command: str) -> str:
    """As the shell's help takes it: the mark keeps its lines apart."""
    lines = "\n".join(f"  {line}" for line in EXAMPLES[command])
    return f"\b\nExamples:\n{lines}"

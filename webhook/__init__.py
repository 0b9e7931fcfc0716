"""The receiver: `gunicorn 'webhook:create_app()'`."""

from webhook.app import create_app

__all__ = ["create_app"]

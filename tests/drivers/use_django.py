"""Django: persistent connections of many threads, server-side cursors, TIME_ZONE, atomic blocks."""
import os
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlparse

import django
from django.conf import settings

dsn = urlparse(os.environ["DSN"])
settings.configure(
    USE_TZ=True,
    TIME_ZONE="Asia/Tokyo",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": dsn.hostname, "PORT": dsn.port, "USER": dsn.username, "NAME": dsn.path[1:],
            "CONN_MAX_AGE": None, "TIME_ZONE": "Asia/Tokyo",
        }
    },
    INSTALLED_APPS=[],
)
django.setup()
from django.db import connection, models, transaction  # noqa: E402


class Job(models.Model):
    id = models.IntegerField(primary_key=True)
    done_by = models.TextField(null=True)

    class Meta:
        app_label = "drivers"
        db_table = "jobs"
        managed = False


Job.objects.all().delete()
Job.objects.bulk_create(Job(id=n) for n in range(200))


def request(number):
    for _ in range(10):
        with connection.cursor() as cursor:
            cursor.execute("SHOW timezone")
            assert cursor.fetchone() == ("Asia/Tokyo",)
        with transaction.atomic():
            job = Job.objects.select_for_update(skip_locked=True).filter(done_by=None).first()
            if job:
                job.done_by = f"thread {number}"
                job.save()
            try:
                with transaction.atomic():
                    Job.objects.create(id=0)
                raise SystemExit("the error is lost")
            except django.db.IntegrityError:
                pass
        assert len(list(Job.objects.order_by("id").iterator(chunk_size=50))) == 200


with ThreadPoolExecutor(10) as threads:
    list(threads.map(request, range(20)))
assert Job.objects.exclude(done_by=None).count() == 200

"""Concurrent and killed publishers leave a store of whole versions."""

import multiprocessing
import random
import time

from app.detection import store


def publish_forever(source, root, started):
    bundle = store.load(source)
    started.set()
    while True:
        store.publish(bundle, root, lambda folder: (folder / "picture.png").write_bytes(bytes(200_000)))


def publish_some(source, root):
    bundle = store.load(source)
    for _ in range(5):
        store.publish(bundle, root)


def test_two_publishers_at_once(tiny_store, tmp_path):
    """Of two processes that publish at once, each gets versions of its own, and all of them load."""
    context = multiprocessing.get_context("spawn")
    arguments = (tiny_store / "mnist" / "1", tmp_path)
    processes = [context.Process(target=publish_some, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert store.versions(tmp_path, "mnist") == list(range(1, 11))
    for version in range(1, 11):
        store.load(tmp_path / "mnist" / str(version))


def test_killed_publisher_leaves_whole_versions(tiny_store, tmp_path, kills=3):
    """kill -9 at random moments of publishing: every version that is there loads, and publishing goes on."""
    context, moments = multiprocessing.get_context("spawn"), random.Random(0)
    source = tiny_store / "mnist" / "1"
    for _ in range(kills):
        started = context.Event()
        process = context.Process(target=publish_forever, args=(source, tmp_path, started))
        process.start()
        assert started.wait(60)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        process.close()
    last = store.publish(store.load(source), tmp_path)
    found = store.versions(tmp_path, "mnist")
    assert found == list(range(1, int(last.name) + 1))
    for version in found:
        store.load(tmp_path / "mnist" / str(version))

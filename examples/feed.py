"""Follows the feed of changes: python3 feed.py AMQP_URL QUEUE FILE

Keeps a dictionary with the newest version of each user. On SIGTERM it writes the dictionary to the file, one JSON object
a line. Needs pika, and EMBEDDING_FEED=vectors.
"""
import array, base64, json, signal, sys, time
import pika

url, queue, file = sys.argv[1:]
newest = {}  # user id: (version, vector or None)


def write_and_exit(*_):
    with open(file, "w") as out:
        for user, (version, vector) in newest.items():
            if vector is not None:
                out.write(json.dumps({"user_id": user, "version": version, "embedding": vector}) + "\n")
    sys.exit(0)


def on_change(channel, method, _properties, body):
    change = json.loads(body)
    if change["version"] > newest.get(change["user_id"], (-1, None))[0]:
        # Of "erased" and "merged" there is no vector.
        vector = change.get("embedding") and array.array("f", base64.b64decode(change["embedding"])).tolist()
        newest[change["user_id"]] = (change["version"], vector)
    channel.basic_ack(method.delivery_tag)


signal.signal(signal.SIGTERM, write_and_exit)
while True:
    try:
        channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
        channel.exchange_declare("user_embeddings", "topic", durable=True)
        channel.queue_declare(queue, durable=True, arguments={"x-expires": 7 * 86_400_000, "x-queue-type": "quorum"})
        channel.queue_bind(queue, "user_embeddings", "user.embedding.*")
        channel.basic_qos(prefetch_count=1000)
        channel.basic_consume(queue, on_change)
        print("following", flush=True)
        channel.start_consuming()
    except (pika.exceptions.AMQPError, OSError) as error:
        print("trying again:", repr(error), file=sys.stderr, flush=True)
        time.sleep(1)

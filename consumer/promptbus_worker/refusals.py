"""Why Kafka refuses what this worker wants, asked of the brokers once a client has failed: clients tell less than brokers."""

from __future__ import annotations

from promptbus.kafka_errors import ConnectionNotes
from promptbus.listener import misunderstandings
from promptbus.rights import Right, lacking
from promptbus_worker import kafka
from promptbus_worker.settings import Settings

LOOK_S = 2.0


def not_let_in(settings: Settings, client_id: str) -> str | None:
    """Why no new connection comes about, or none to a broker that the others name; None if nothing is in the way.

    Blocks for some seconds at most. Logs in, so it is not to be asked often.
    """
    notes = ConnectionNotes()
    try:
        brokers = kafka.brokers(kafka.admin_client(settings, client_id, notes), settings, notes)
    except kafka.NotYet as not_yet:
        return str(not_yet)
    return next(iter(misunderstandings(brokers, settings.client_config(), LOOK_S).values()), None)


def denied(settings: Settings, client_id: str, error: str) -> str | None:
    """The sentence about the right that is missing, for an error by its name; None if it is about no right.

    An error in a transaction does not say which topic it is about, and one that was denied its very first topic cannot
    be ended either. So the brokers are asked, which takes some seconds at most.
    """
    match error:
        case "TRANSACTIONAL_ID_AUTHORIZATION_FAILED":
            return lacking(settings, kafka.right_to_transactions(settings, client_id))
        case "GROUP_AUTHORIZATION_FAILED":
            return lacking(settings, Right("READ", "group", settings.kafka_group_id))
        case "TOPIC_AUTHORIZATION_FAILED" | "INVALID_TXN_STATE":
            try:
                kafka.ensure_topics(kafka.admin_client(settings, client_id), settings)
            except kafka.Unusable as unusable:
                return str(unusable)
            except kafka.NotYet:
                return None
    return None

"""One stream of messages feeds many subscribers, each at its own pace; over a store."""

from dispatcher.broker.broker import Broker, BrokerStatistics
from dispatcher.broker.deliverer import Deliverer
from dispatcher.broker.errors import (
    BadRequest,
    BrokerClosed,
    BrokerError,
    BrokerGone,
    BrokerOwned,
    ConfigError,
    MessageRefused,
    Refused,
    SubscriptionBusy,
    UnknownSubscription,
    UnknownTopic,
)
from dispatcher.broker.message import Delivery, Message, Published
from dispatcher.broker.options import SubscribeOptions, TopicOptions
from dispatcher.broker.subscription import Subscription

__all__ = [
    "BadRequest",
    "Broker",
    "BrokerClosed",
    "BrokerError",
    "BrokerGone",
    "BrokerOwned",
    "BrokerStatistics",
    "ConfigError",
    "Deliverer",
    "Delivery",
    "Message",
    "MessageRefused",
    "Published",
    "Refused",
    "SubscribeOptions",
    "Subscription",
    "SubscriptionBusy",
    "TopicOptions",
    "UnknownSubscription",
    "UnknownTopic",
]

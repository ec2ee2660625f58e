"""One stream of messages feeds many subscribers, each at its own pace; over a store."""

from dispatcher.broker.address import Address
from dispatcher.broker.broker import Broker, BrokerStatistics
from dispatcher.broker.client import BrokerClient, ClientSubscription
from dispatcher.broker.connection import ServerOptions
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
from dispatcher.broker.server import BrokerServer, Push
from dispatcher.broker.subscription import Subscription

__all__ = [
    "Address",
    "BadRequest",
    "Broker",
    "BrokerClient",
    "BrokerClosed",
    "BrokerError",
    "BrokerGone",
    "BrokerOwned",
    "BrokerServer",
    "BrokerStatistics",
    "ClientSubscription",
    "ConfigError",
    "Deliverer",
    "Delivery",
    "Message",
    "MessageRefused",
    "Published",
    "Push",
    "Refused",
    "ServerOptions",
    "SubscribeOptions",
    "Subscription",
    "SubscriptionBusy",
    "TopicOptions",
    "UnknownSubscription",
    "UnknownTopic",
]

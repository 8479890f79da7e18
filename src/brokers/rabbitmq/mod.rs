//! RabbitMQ over AMQP 0-9-1: publisher confirms, mandatory routing, our own reconnection.

mod broker;
mod connection;
mod loss;
mod memory;
mod publication;
mod questions;
mod returns;
mod rights;
mod session;
mod settings;
mod topology;
mod tries;
mod uri;

pub(crate) use broker::Rabbitmq;
pub(crate) use settings::Settings;

//! The conformance suite: what every broker must show. A new broker is one file here, beside `kafka`.

/// Makes tests of the cases that a broker runs: `conform! { Kafka: delivery { .. } faults { .. } }`.
macro_rules! conform {
    ($rig:ty: $($module:ident { $($case:ident)* })*) => {
        $($(
            #[test]
            fn $case() {
                crate::conformance::$module::$case::<$rig>(stringify!($case));
            }
        )*)*
    };
}

// The brokers.
mod file;
pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod rabbitmq;

// What a broker supplies.
pub(crate) mod rig;
pub(crate) mod stuck;

// The cases.
mod access;
mod delivery;
mod end;
mod faults;
mod modes;
mod outage;
mod parked;
mod refusal;
mod topology;

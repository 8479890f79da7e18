//! The faults of a cluster of three, and their names.

/// A fault; while it lasts, events keep arriving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The node that leads is killed and returns; the bridge is connected to another.
    LeaderKilled,
    /// The node of the bridge's connection is killed and returns; another one leads.
    ConnectedKilled,
    /// One node is both of them, is killed and returns.
    LeaderAndConnectedKilled,
    /// Each node is restarted in good order, one after the other.
    RollingRestart,
    /// The node that leads hangs.
    LeaderPaused,
    /// Both others hang: too few replicas.
    FollowersPaused,
    /// The same while one event is the only one in flight.
    FollowersPausedBehindOne,
    /// Both others are killed and return.
    MajorityGone,
    /// Every two seconds another node leads.
    LeaderMoved,
    /// The same while an event now and then is the only one in flight.
    LeaderMovedAtLowRate,
    /// One address of two takes nothing.
    AddressRefuses,
    /// The same, ended by taking its limit away, which the broker does not tell those that it refused.
    LimitRemoved,
    /// Topic, queue or stream is deleted and made anew on another node.
    DeletedAndMadeAnew,
    /// A topic is given more partitions.
    PartitionsAdded,
    /// The password is renewed while the bridge is connected; then the old one is refused.
    PasswordRenewed,
    /// Many times over: one event is sent while something happens to the nodes.
    OneEvent(Moment),
}

/// The thing that happens to nodes while one event is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// The node that leads is killed.
    LeaderKilled,
    /// The node that leads is restarted in good order.
    LeaderRestarted,
    /// Both others are killed.
    FollowersKilled,
    /// Both others hang.
    FollowersPaused,
}

impl Fault {
    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LeaderKilled => "leader_killed",
            Self::ConnectedKilled => "connected_killed",
            Self::LeaderAndConnectedKilled => "leader_and_connected_killed",
            Self::RollingRestart => "rolling_restart",
            Self::LeaderPaused => "leader_paused",
            Self::FollowersPaused => "followers_paused",
            Self::FollowersPausedBehindOne => "followers_paused_behind_one",
            Self::MajorityGone => "majority_gone",
            Self::LeaderMoved => "leader_moved",
            Self::LeaderMovedAtLowRate => "leader_moved_at_low_rate",
            Self::AddressRefuses => "address_refuses",
            Self::LimitRemoved => "limit_removed",
            Self::DeletedAndMadeAnew => "deleted_and_made_anew",
            Self::PartitionsAdded => "partitions_added",
            Self::PasswordRenewed => "password_renewed",
            Self::OneEvent(Moment::LeaderKilled) => "one_event_leader_killed",
            Self::OneEvent(Moment::LeaderRestarted) => "one_event_leader_restarted",
            Self::OneEvent(Moment::FollowersKilled) => "one_event_followers_killed",
            Self::OneEvent(Moment::FollowersPaused) => "one_event_followers_paused",
        }
    }
}

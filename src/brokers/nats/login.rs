//! The bridge's login: one way, from the settings or from the URLs.

use std::path::PathBuf;

use crate::settings::{Secret, Section};

/// The bridge's login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    Anonymous,
    Credentials(PathBuf),
    Password(String, Secret),
    Token(Secret),
    Seed(Secret),
}

impl Login {
    /// The user, as far as the settings name one.
    pub(super) fn who(&self) -> String {
        match self {
            Self::Password(user, _) => format!("the user {user}"),
            Self::Anonymous => "a client without a login".to_owned(),
            Self::Credentials(_) | Self::Token(_) | Self::Seed(_) => "these credentials".to_owned(),
        }
    }
}

/// The seed in a file: alone, or between the lines that the tools write around it.
fn seed(section: &mut Section<'_>) -> Option<Login> {
    let content = section.secret_in_file("nkey_seed_file")?;
    let line = content.reveal().lines().map(str::trim).find(|line| line.starts_with('S')).unwrap_or_default();
    match nkeys::KeyPair::from_seed(line) {
        Ok(pair) if pair.key_pair_type() == nkeys::KeyPairType::User => Some(Login::Seed(Secret::new(line))),
        Ok(_) => {
            section.problem("nkey_seed_file", "holds a seed that is not a user's; a user's starts with SU");
            None
        }
        Err(_) => {
            section.problem("nkey_seed_file", "holds no nkey seed; a user's starts with SU");
            None
        }
    }
}

/// Reads how to log in; `in_urls` is what the URLs of the servers say.
pub(super) fn login(section: &mut Section<'_>, in_urls: Login) -> Login {
    let credentials = section.readable_file("credentials_file");
    let username = section.text("username");
    let password = section.secret("password");
    let token = section.secret("token");
    let seed = seed(section);
    if let Some(path) = &credentials {
        section.warn_if_world_readable("credentials_file", path);
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let parsed = text.and_then(|text| {
            async_nats::ConnectOptions::with_credentials(&text).map(drop).map_err(|error| error.to_string())
        });
        if let Err(wrong) = parsed {
            section.problem("credentials_file", format_args!("{} is not a .creds file: {wrong}", path.display()));
        }
    }
    let mut logins = Vec::new();
    let mut add = |key, login| logins.push((key, login));
    if let Some(path) = credentials {
        add("credentials_file", Login::Credentials(path));
    }
    if let Some(seed) = seed {
        add("nkey_seed_file", seed);
    }
    match (username.is_empty(), password) {
        (true, None) => {}
        (false, Some(password)) => add("username", Login::Password(username, password)),
        (false, None) => section.problem("username", "given without `password` or `password_file`"),
        (true, Some(_)) => section.problem("username", "missing; `password` is given"),
    }
    if let Some(token) = token {
        add("token", Login::Token(token));
    }
    if in_urls != Login::Anonymous {
        add("servers", in_urls);
    }
    if let [(_, _), (key, _), ..] = logins.as_slice() {
        let rule = "give one of `credentials_file`, `nkey_seed_file`, `username` with `password`, `token`, or a user in the URLs";
        section.problem(key, format_args!("a second way to log in; {rule}"));
    }
    logins.into_iter().next().map_or(Login::Anonymous, |(_, login)| login)
}

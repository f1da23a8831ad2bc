//! A cluster's API server: login and client.

//! eks

//! slipway-tests

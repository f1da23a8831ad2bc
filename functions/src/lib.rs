//! slipway-functions

//! slipway-karpenter

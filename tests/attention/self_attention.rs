//! Query, key and value side by side give what they give apart.

use burn::tensor::{DType, Device, Tensor};
use burn_frontier::ops::attention::{AttentionOptions, SelfAttention, attention, self_attention};
use burn_frontier::ops::rotary::{RotaryTable, rotary};

use super::{assert_close, leaf, options, places_and_single, site, with_gradients};

/// The definition: three parts, turned, attended, and put beside each other again.
fn apart(x: Tensor<3>, sizes: &SelfAttention, options: &AttentionOptions) -> Tensor<3> {
    let &SelfAttention {
        heads, kv_heads, ..
    } = sizes;
    let [batch, seq, width] = x.dims();
    let d = width / (heads + 2 * kv_heads);
    let part = |first: usize, n: usize| {
        let x = x.clone().narrow(2, first * d, n * d);
        x.reshape([batch, seq, n, d]).swap_dims(1, 2)
    };
    let turned = |x: Tensor<4>| match &sizes.rotary {
        Some(table) => rotary(x, table).unwrap(),
        None => x,
    };
    let (q, k) = (turned(part(0, heads)), turned(part(heads, kv_heads)));
    let y = attention(q, k, part(heads + kv_heads, kv_heads), options).unwrap();
    y.swap_dims(1, 2).reshape([batch, seq, heads * d])
}

#[test]
fn query_key_and_value_side_by_side_give_what_they_give_apart() {
    let (batch, seq, heads, d) = (2, 37, 2, 8);
    for kv_heads in [1, 2] {
        for (turned, causal, dropped) in [
            (false, true, false),
            (true, true, false),
            (true, false, true),
        ] {
            let mut options = options(causal);
            options.dropout = dropped.then(|| site(vec![3, 7], [heads, seq, seq]));
            let shape = [batch, seq, (heads + 2 * kv_heads) * d];
            let sizes = |at: &(Device, DType)| SelfAttention {
                heads,
                kv_heads,
                rotary: turned.then(|| RotaryTable::new(seq + 3, d, 1e4, (&at.0, at.1))),
            };
            let reference = (Device::flex(), DType::F64);
            let x = leaf(1, shape, &reference);
            let expected = apart(x.clone(), &sizes(&reference), &options);
            let expected = with_gradients(expected, &reference, &[&x]);
            for (device, dtype, limit) in places_and_single() {
                let limit = if dtype == DType::F16 { 4e-3 } else { limit };
                let at = (device, dtype);
                let x = leaf(1, shape, &at);
                let y = self_attention(x.clone(), &sizes(&at), &options).unwrap();
                for (found, expected) in with_gradients(y, &at, &[&x]).iter().zip(&expected) {
                    let what = format!("{kv_heads} {turned} {causal} {dropped} {dtype:?}");
                    assert_close(&what, found, expected, limit);
                }
            }
        }
    }
}

#[test]
fn what_does_not_lie_side_by_side_is_refused() {
    let at = (Device::flex(), DType::F32);
    let x = leaf(1, [1, 3, 24], &at);
    let refused = |heads: usize, kv_heads: usize, table: Option<usize>| {
        let sizes = SelfAttention {
            heads,
            kv_heads,
            rotary: table.map(|seq| RotaryTable::new(seq, 6, 1e4, (&at.0, at.1))),
        };
        self_attention(x.clone(), &sizes, &options(true)).is_err()
    };
    assert!(!refused(2, 1, None) && !refused(2, 1, Some(3)));
    assert!(refused(3, 1, None), "24 is not 5 heads");
    assert!(refused(3, 2, None) && refused(2, 0, None) && refused(0, 0, None));
    assert!(refused(2, 1, Some(2)), "a table of fewer positions");
    let mut dropped = options(true);
    dropped.dropout = Some(site(vec![0], [2, 3, 4]));
    let sizes = SelfAttention {
        heads: 2,
        kv_heads: 1,
        rotary: None,
    };
    assert!(self_attention(x.clone(), &sizes, &dropped).is_err());
}

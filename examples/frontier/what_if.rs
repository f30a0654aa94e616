//! What the runtime lacks and would gain, on Frontier.

use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::outlook::{MARK, Possible, outlook_of};
use burn_frontier::plan::search::search;
use burn_frontier::plan::what_if::Lack;
use burn_frontier::plan::{Job, Machine};
use burn_frontier::{Layout, Result};

use super::flags::flags;
use super::{HEADLINES, line, published, table};

/// As the runtime would run it: attention in one kernel, gradients reduced beside the backward pass.
fn ours(job: Job<GptConfig>) -> Job<GptConfig> {
    Job {
        fused_attention: true,
        overlap: true,
        ..job
    }
}

fn gib(bytes: f64) -> String {
    format!("{:.1}", bytes / 2f64.powi(30))
}

/// Name, layout, speed, gain and memory of something that is not there.
fn cells(name: String, gain: Option<f64>, possible: &Possible<GptConfig>) -> Vec<String> {
    let gain = match gain {
        Some(gain) => format!("{:+.1} %", 100.0 * gain),
        None => "fits".into(),
    };
    vec![
        name,
        possible.what_if.to_string(),
        format!("{:.2}", possible.tokens_per_second_per_rank),
        gain,
        gib(possible.bytes),
    ]
}

fn share(seconds: f64, possible: &Possible<GptConfig>) -> String {
    format!("{:.1} %", 100.0 * seconds / possible.time.seconds())
}

/// What each thing that is lacking would add to the headlines.
pub fn lacking(text: &mut String, machine: &Machine) -> Result<()> {
    *text += &format!(
        "\n## What if: {MARK}\n\n\
         No line of this section but those that say \"runs\" can be run by this project; the planner knows what the runtime lacks\n\
         (`gpt_1t --plan --what-if`). Each line is the fastest layout that fits and has that one thing, for the model, GCDs and batch of a\n\
         headline, beside the fastest that runs; all with fused attention, and with gradients reduced beside the backward pass. ZB-H1 splits\n\
         weight gradients from input gradients (arXiv 2401.10241) and costs what its order costs when it is executed. ZeRO 2 reduces every\n\
         micro-batch's gradients, for no rank has room for their sum; ZeRO 3 also gathers every layer twice a micro-batch, and has no\n\
         pipeline. The last column is the least that the fullest stage needs in any layout, be it slow. No published row calibrates any of\n\
         it, and what is hidden is taken to cost the passes beside it nothing: a gain below the uncertainty is none.\n\n"
    );
    table(
        text,
        &[
            "model",
            "with",
            "layout and switches",
            "tokens/s a GCD",
            "gain",
            "GiB",
            "bubble",
            "exposed reduction and gathering",
            "least GiB",
        ],
    );
    for headline in &HEADLINES {
        let like = ours(published(
            headline.preset,
            headline.layout,
            headline.global_batch,
            1,
        )?);
        let ranks = like.layout.world();
        let found = search(&like, machine, ranks)?;
        let least = found.ranked.iter().map(|candidate| candidate.bytes);
        let least = least.fold(f64::INFINITY, f64::min);
        if let Some(best) = found.ranked.first() {
            let percent = |seconds: f64| format!("{:.1} %", 100.0 * seconds / best.time.seconds());
            line(
                text,
                &[
                    headline.name.into(),
                    "what runs".into(),
                    format!("`{}`", flags(&best.job)),
                    format!("{:.2}", best.tokens_per_second_per_rank),
                    String::new(),
                    gib(best.bytes),
                    percent(best.time.bubble),
                    percent(best.time.data),
                    gib(least),
                ],
            );
        }
        for lack in [Lack::ZeroBubble, Lack::Zero2, Lack::Zero3] {
            let prospect = outlook_of(lack, &like, machine, ranks, &found)?;
            let Some(fastest) = &prospect.fastest else {
                continue;
            };
            let mut row = cells(format!("what if: {lack}"), prospect.gain, fastest);
            row.insert(0, headline.name.into());
            row.push(share(fastest.time.bubble, fastest));
            row.push(share(fastest.time.data + fastest.time.gather, fastest));
            row.push(gib(prospect.least_bytes));
            line(text, &row);
        }
    }
    *text += "\n";
    Ok(())
}

/// 175B at longer and longer sequences: where context parallelism is needed.
pub fn long_sequences(text: &mut String, machine: &Machine) -> Result<()> {
    *text += &format!(
        "### Long sequences: 175B on 1024 GCDs, 8.4 million tokens a step\n\n\
         Context parallelism is {MARK}. Its ring sends keys and values, and back the sums of their gradients in fp32, beside attention; between nodes at the\n\
         {:.0} % of the adapters' bandwidth that the machine file gives messages. Attention waits for Ulysses' all-to-alls, at the {:.0} % of\n\
         collectives. What attention does not hide of either is in the last column.\n\n",
        100.0 * machine.links.network.message_efficiency,
        100.0 * machine.links.network.efficiency,
    );
    table(
        text,
        &[
            "sequence",
            "with",
            "layout and switches",
            "tokens/s a GCD",
            "gain",
            "GiB",
            "exposed context-parallel communication",
        ],
    );
    for (sequence, batch) in [(32_768, 256), (131_072, 64), (524_288, 16)] {
        let mut like = ours(published("175b", [8, 16, 8], batch, 1)?);
        like.model.sequence = sequence;
        like.layout = Layout {
            tp: 8,
            pp: 16,
            dp: 8,
        }
        .validated()?;
        let ranks = like.layout.world();
        let found = search(&like, machine, ranks)?;
        let runs = found.ranked.first().map_or_else(
            || ["nothing fits".into(), String::new(), String::new()],
            |best| {
                [
                    format!("`{}`", flags(&best.job)),
                    format!("{:.2}", best.tokens_per_second_per_rank),
                    gib(best.bytes),
                ]
            },
        );
        let [layout, speed, bytes] = runs;
        line(
            text,
            &[
                sequence.to_string(),
                "what runs".into(),
                layout,
                speed,
                String::new(),
                bytes,
                String::new(),
            ],
        );
        let prospect = outlook_of(Lack::ContextParallel, &like, machine, ranks, &found)?;
        if let Some(fastest) = &prospect.fastest {
            let name = format!("what if: {}", Lack::ContextParallel);
            let mut row = cells(name, prospect.gain, fastest);
            row.insert(0, sequence.to_string());
            row.push(share(fastest.time.context, fastest));
            line(text, &row);
        }
    }
    Ok(())
}

#include "planner/root_bisection.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int multiplier_steps = 5;
constexpr int later_multiplier_steps = 2;

// A relaxed plan, which gives the bound sum + multiplier * (loss - budget): a line in the multiplier.
struct Line {
    double sum = 0;
    double loss = -1;  // none

    bool exists() const { return loss >= 0; }
};

struct Span {
    Interval interval;
    Line over;
    Line under;
};

class RootBisection {
  public:
    RootBisection(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                  const TimeLimit& time_limit, Incumbent incumbent, double narrowest, std::size_t max_bytes)
        : problem_(problem),
          t_(t),
          objective_(objective),
          least_(least),
          time_limit_(time_limit),
          narrowest_(narrowest),
          max_bytes_(max_bytes) {
        root_.incumbent = std::move(incumbent);
    }

    Root run() {
        for (const Metric& metric : t_.metrics) root_.intervals.push_back(explore(metric));
        root_.lower_bound_s = lower_bound_s(root_.intervals);
        return std::move(root_);
    }

  private:
    std::vector<Interval> explore(const Metric& metric) {
        std::vector<Span> spans(1);
        try_multiplier(metric, spans[0], 0);
        for (int step = 0; step < multiplier_steps && !time_limit_.is_reached(); ++step)
            improve_multiplier(metric, spans[0]);
        if (root_.incumbent.stages.empty())
            offer(problem_, objective_, diving_heuristic_for_loss(t_, least_), root_.incumbent);
        const bool is_bounded = root_.incumbent.objective_s < infinity;
        if (is_bounded && (metric.prefill_max > 0 || metric.decode_max > 0)) {
            // The bound is of the sum alone so far.
            spans[0].interval.high = root_.incumbent.objective_s - spans[0].interval.bound;
            while (!time_limit_.is_reached() && has_room(spans) && bisect_lowest(metric, spans)) {
            }
        }
        std::vector<Interval> intervals;
        for (Span& span : spans) {
            if (is_promising(span)) intervals.push_back(std::move(span.interval));
        }
        return intervals;
    }

    bool is_promising(const Span& span) const { return span.interval.bound < root_.incumbent.cutoff(); }

    bool has_room(const std::vector<Span>& spans) {
        const std::size_t most = max_bytes_ / relaxation_bytes(t_);
        if (spans.size() + 2 > most) return false;
        if (spans.size() + spares_.size() > most) spares_.resize(most - spans.size());
        return true;
    }

    // One more relaxation; kept if its bound is the interval's best.
    void try_multiplier(const Metric& metric, Span& span, double multiplier) {
        Interval& interval = span.interval;
        auto made =
            std::make_shared<Relaxation>(relax(t_, metric, interval.high, multiplier, time_limit_, spare()));
        const double bound = made->root - multiplier * t_.loss_limit + interval.low;
        if (made->root < infinity) {
            offer(problem_, objective_, diving_heuristic(t_, metric, *made, least_), root_.incumbent);
            const double loss = relaxed_optimum(t_, metric, *made).loss;
            (loss > t_.loss_limit ? span.over : span.under) = {made->root - multiplier * loss, loss};
        }
        const bool is_better = bound > interval.bound;
        if (is_better || interval.relaxations.empty()) {
            if (!interval.relaxations.empty())
                keep_memory(std::exchange(interval.relaxations.front(), nullptr));
            interval.relaxations.assign(1, std::move(made));
        } else {
            keep_memory(std::move(made));
        }
        // A relaxation that was given up does not take back what is proven of the wider interval.
        if (is_better) {
            interval.bound = bound;
            interval.multiplier = multiplier;
        }
    }

    // Keeps the memory of a relaxation that is not needed again, unless another interval has it.
    void keep_memory(std::shared_ptr<Relaxation> relaxation) {
        if (relaxation.use_count() == 1) spares_.push_back(std::move(*relaxation));
    }

    Relaxation spare() {
        if (spares_.empty()) return {};
        Relaxation last = std::move(spares_.back());
        spares_.pop_back();
        return last;
    }

    // The multiplier at which the lines of a walk above the loss budget and one within it meet (LARAC, as in root.cpp).
    void improve_multiplier(const Metric& metric, Span& span) {
        if (!span.over.exists() || !is_promising(span)) return;
        double multiplier = 0;
        if (span.under.exists()) {
            multiplier = (span.under.sum - span.over.sum) / (span.over.loss - span.under.loss);
        } else {
            multiplier =
                span.interval.multiplier > 0 ? 4 * span.interval.multiplier : span.over.sum / span.over.loss;
        }
        if (multiplier > 0 && multiplier <= most_multiplier &&
            std::fabs(multiplier - span.interval.multiplier) > 1e-3 * multiplier)
            try_multiplier(metric, span, multiplier);
    }

    void drop_fathomed(std::vector<Span>& spans) {
        for (Span& span : spans) {
            if (is_promising(span) || span.interval.relaxations.empty()) continue;
            std::shared_ptr<Relaxation> dropped = std::move(span.interval.relaxations.front());
            span.interval.relaxations.clear();
            keep_memory(std::move(dropped));
        }
        std::erase_if(spans, [&](const Span& span) { return !is_promising(span); });
    }

    // Bisects the interval with the smallest bound. The upper half keeps the relaxation, whose limit is the same.
    bool bisect_lowest(const Metric& metric, std::vector<Span>& spans) {
        drop_fathomed(spans);
        if (spans.empty()) return false;
        const auto lowest = std::min_element(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
            return a.interval.bound < b.interval.bound;
        });
        const Interval& whole = lowest->interval;
        if (whole.high - whole.low <= narrowest_ * root_.incumbent.objective_s) return false;
        const double middle = whole.low + (whole.high - whole.low) / 2;
        Span lower = *lowest;
        lower.interval.high = middle;
        lower.interval.relaxations.clear();
        lowest->interval.bound += middle - whole.low;
        lowest->interval.low = middle;
        try_multiplier(metric, lower, lower.interval.multiplier);
        for (int step = 0; step < later_multiplier_steps; ++step) improve_multiplier(metric, lower);
        spans.insert(lowest, std::move(lower));
        return true;
    }

    const Problem& problem_;
    const Tables& t_;
    const Objective objective_;
    const Relaxation& least_;
    const TimeLimit& time_limit_;
    const double narrowest_;
    const std::size_t max_bytes_;
    std::vector<Relaxation> spares_;  // memory to be used again
    Root root_;
};

}  // namespace

Root bisect_root(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                 const TimeLimit& time_limit, Incumbent incumbent, double narrowest, std::size_t max_bytes) {
    return RootBisection(problem, t, objective, least, time_limit, std::move(incumbent), narrowest, max_bytes)
        .run();
}

}  // namespace orbitsplit::planner

#include "planner/root.hpp"

#include <algorithm>
#include <utility>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int interval_count = 16;
constexpr int rounds = 3;

// With weight levels the loss buys more, and in larger pieces: better multipliers save more labels than they take time.
int multiplier_steps(const Tables& t) { return t.has_weight_levels() ? 8 : 4; }

class RootExplorer {
  public:
    RootExplorer(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                 const TimeLimit& time_limit, Incumbent incumbent, std::size_t max_bytes)
        : problem_(problem), t_(t), objective_(objective), least_(least), time_limit_(time_limit) {
        root_.incumbent = std::move(incumbent);
        has_room_ = 2 * interval_count * (multiplier_steps(t) + 1) * relaxation_bytes(t) <= max_bytes;
    }

    Root run() {
        for (const Metric& metric : t_.metrics) {
            Interval whole;
            optimise_multiplier(metric, whole, 0);
            root_.intervals.emplace_back();
            root_.intervals.back().push_back(std::move(whole));
        }
        offer(problem_, objective_, diving_heuristic_for_loss(t_, least_), root_.incumbent);
        std::vector<double> least_sum;
        for (const auto& intervals : root_.intervals) least_sum.push_back(intervals.front().bound);
        for (int round = 1; has_room_ && round <= rounds && root_.incumbent.objective_s < infinity; ++round) {
            for (std::size_t a = 0; a < t_.metrics.size() && !time_limit_.is_reached(); ++a) {
                refine(t_.metrics[a], root_.intervals[a], least_sum[a], round == rounds);
            }
        }
        for (auto& intervals : root_.intervals) drop_fathomed(intervals);
        root_.lower_bound_s = lower_bound_s(root_.intervals);
        return std::move(root_);
    }

  private:
    // Adds a relaxation at one multiplier; its diving heuristic may improve the incumbent.
    const Relaxation& add(const Metric& metric, Interval& interval, double multiplier) {
        interval.relaxations.push_back(
            std::make_shared<Relaxation>(relax(t_, metric, interval.high, multiplier, time_limit_)));
        const Relaxation& made = *interval.relaxations.back();
        const double bound = made.root - multiplier * t_.loss_limit + interval.low;
        if (bound > interval.bound) {
            interval.bound = bound;
            interval.multiplier = multiplier;
        }
        if (made.root < infinity)
            offer(problem_, objective_, diving_heuristic(t_, metric, made, least_), root_.incumbent);
        return made;
    }

    // Two multipliers: 0, and the best of the interval that this one is a part of.
    void inherit_multiplier(const Metric& metric, Interval& interval, double inherited) {
        const double free_root = add(metric, interval, 0).root;
        if (free_root < infinity && inherited > 0 && interval.bound < root_.incumbent.cutoff()) {
            add(metric, interval, inherited);
        }
    }

    // The best multiplier, by intersecting the lines of a walk within the loss budget and one above it (LARAC; Juttner
    // et al., INFOCOM 2001), starting from multiplier 0 and the inherited one.
    void optimise_multiplier(const Metric& metric, Interval& interval, double inherited) {
        const Relaxation& unpenalised = add(metric, interval, 0);
        if (unpenalised.root == infinity) return;
        double over_sum = unpenalised.root;
        double over_loss = relaxed_optimum(t_, metric, unpenalised).loss;
        if (over_loss <= t_.loss_limit) return;
        double under_sum = 0;
        double under_loss = -1;
        // If sums have no weight, the interval's end replaces them.
        double next = inherited > 0 ? inherited : (over_sum > 0 ? over_sum : interval.high) / over_loss;
        for (int step = 0; step < multiplier_steps(t_) && next <= most_multiplier; ++step) {
            if (interval.bound >= root_.incumbent.cutoff() || time_limit_.is_reached()) return;
            const Relaxation& penalised = add(metric, interval, next);
            const double loss = relaxed_optimum(t_, metric, penalised).loss;
            const double sum = penalised.root - next * loss;
            if (loss <= t_.loss_limit) {
                under_sum = sum;
                under_loss = loss;
            } else {
                over_sum = sum;
                over_loss = loss;
            }
            const double last = next;
            next = under_loss < 0 ? 4 * next : (under_sum - over_sum) / (over_loss - under_loss);
            if (!(next > 0) || next == last) return;
        }
    }

    // Divides the intervals that may hold a better plan into smaller ones.
    void refine(const Metric& metric, std::vector<Interval>& intervals, double least_sum, bool is_last) {
        if (metric.prefill_max == 0 && metric.decode_max == 0) return;
        drop_fathomed(intervals);
        const double top = root_.incumbent.objective_s - least_sum;
        const int parts = std::max(1, interval_count / std::max<int>(1, static_cast<int>(intervals.size())));
        std::vector<Interval> finer;
        for (const Interval& wide : intervals) {
            const double high = std::min(wide.high, top);
            for (int part = 0; part < parts && wide.low < high; ++part) {
                Interval narrow;
                narrow.low = part == 0 ? wide.low : finer.back().high;
                const Interval rest = rest_of(wide, narrow.low);
                if (time_limit_.is_reached()) {
                    finer.push_back(rest);
                    break;
                }
                // What is proven of the whole holds for the part, even where its own relaxations are given up.
                narrow.bound = rest.bound;
                narrow.multiplier = rest.multiplier;
                narrow.high = part + 1 == parts ? high : wide.low + (high - wide.low) * (part + 1) / parts;
                if (is_last) {
                    optimise_multiplier(metric, narrow, wide.multiplier);
                } else {
                    inherit_multiplier(metric, narrow, wide.multiplier);
                }
                finer.push_back(std::move(narrow));
            }
        }
        intervals = std::move(finer);
        drop_fathomed(intervals);
    }

    // The part of an interval above `low`: its relaxations bound that part too.
    static Interval rest_of(const Interval& wide, double low) {
        Interval rest = wide;
        rest.low = low;
        rest.bound += low - wide.low;
        return rest;
    }

    void drop_fathomed(std::vector<Interval>& intervals) const {
        std::erase_if(intervals, [&](const Interval& i) { return i.bound >= root_.incumbent.cutoff(); });
    }

    const Problem& problem_;
    const Tables& t_;
    const Objective objective_;
    const Relaxation& least_;
    const TimeLimit& time_limit_;
    bool has_room_ = true;
    Root root_;
};

}  // namespace

void offer(const Problem& problem, Objective objective, const Walk& walk, Incumbent& incumbent) {
    if (!walk.is_complete) return;
    const Evaluation score = evaluate(problem, walk.stages);
    const double value = value_s(score, objective);
    if (!score.is_feasible || !incumbent.is_beaten_by(value)) return;
    incumbent.objective_s = value;
    incumbent.stages = walk.stages;
}

double lower_bound_s(const std::vector<std::vector<Interval>>& intervals) {
    double most = 0;
    for (const std::vector<Interval>& of_metric : intervals) {
        double least = infinity;
        for (const Interval& interval : of_metric) least = std::min(least, interval.bound);
        most = std::max(most, least);
    }
    return most;
}

Root explore_root(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                  const TimeLimit& time_limit, Incumbent incumbent, std::size_t max_bytes) {
    return RootExplorer(problem, t, objective, least, time_limit, std::move(incumbent), max_bytes).run();
}

}  // namespace orbitsplit::planner

#include "planner/label_bounds.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

LabelBounds::LabelBounds(const Tables& t, const Metric& metric, const std::vector<Interval>& intervals)
    : decode_sum_(metric.decode_sum),
      prefill_max_(metric.prefill_max),
      decode_max_(metric.decode_max),
      loss_limit_(t.loss_limit) {
    for (const Interval& interval : intervals) {
        bands_.push_back(
            {interval.low, multipliers_.size(), multipliers_.size() + interval.relaxations.size()});
        for (const auto& relaxation : interval.relaxations) {
            multipliers_.push_back(relaxation->multiplier);
            departed_.push_back(relaxation->to_go_departed.data());
            arrived_.push_back(relaxation->to_go_arrived.data());
        }
    }
}

double LabelBounds::bound(const Label& label, std::size_t at) const {
    const double sum = label.prefill.sum + decode_sum_ * label.token.sum;
    const double max = prefill_max_ * label.prefill.max + decode_max_ * label.token.max;
    const double left = loss_limit_ - label.loss;
    const std::vector<const double*>& values = label.is_arrived ? arrived_ : departed_;
    double least = std::numeric_limits<double>::infinity();
    for (const Band& band : bands_) {
        double rest = 0;
        for (std::size_t c = band.first; c < band.stop; ++c)
            rest = std::max(rest, values[c][at] - multipliers_[c] * left);
        least = std::min(least, rest + std::max(max, band.low));
    }
    return sum + least;
}

}  // namespace orbitsplit::planner

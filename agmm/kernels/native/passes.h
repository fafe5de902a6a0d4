// The passes of a path, over its `Lanes`: included once a path, behind lines.h.

// Sums and squares in double from the first: the variance is their difference.
template <bool kLast>
struct Moments {
    using Sums = SumsOf<kLast, Doubles, 2>;

    const float *n, *unit;
    double *sums, *squares;

    template <bool kFull>
    void run(const Place& place, Sums& part, size_t channel) const {
        const Lanes x = take_n<kLast, kFull>(n + place.at, unit, place);
        const Halves low = low_half(x), high = high_half(x);
        const size_t next = channel + kLanes / 2;
        part.add(0, channel, low), part.add(0, next, high);
        part.add(1, channel, low * low), part.add(1, next, high * high);
    }

    void take_up(const Place& line, Sums& part) const {
        part.move_to(sums + line.coefficient, 0, line.count);
        part.move_to(squares + line.coefficient, 1, line.count);
    }
};

// kSteps: T where it is known, so that membranes are registers, else 0.
template <size_t kSteps, bool kHard>
struct Scan {
    const size_t steps, step;
    const Lanes leak, threshold;

    Scan(const Shape& shape, const AgmmNeuron& neuron)
        : steps(kSteps ? kSteps : shape.steps),
          step(shape.step()),
          leak(all(neuron.leak)),
          threshold(all(neuron.threshold)) {}

    Lanes reset(Lanes u, Mask fired) const { return kHard ? unless(fired, u) : u - where(fired, threshold); }
};

template <size_t kSteps, bool kHard, bool kLast>
struct Forward : Scan<kSteps, kHard> {
    const AgmmForward job;
    const size_t coefficients;
    const bool past_caches;

    Forward(const Shape& shape, const AgmmNeuron& neuron, const AgmmForward& job)
        : Scan<kSteps, kHard>(shape, neuron),
          job(job),
          coefficients(shape.coefficients()),
          past_caches(shape.stream) {}

    using Sums = NoSums;

    template <bool kFull>
    void run(const Place& place, Sums&, size_t) const {
        Lanes scale = {}, shift = {}, v = {};
        if (job.n) {
            scale = of_channel<kLast, kFull>(job.scale + place.channel, place.count);
            shift = of_channel<kLast, kFull>(job.shift + place.channel, place.count);
        }
#pragma GCC unroll 8
        for (size_t t = 0; t < this->steps; ++t) {
            const size_t at = t * this->step + place.at;
            Lanes x = {};
            if (job.n) {
                const Lanes gate = of_channel<kLast, kFull>(job.gate + t * coefficients + place.coefficient, place.count);
                x = gate * multiply_add(take_n<kLast, kFull>(job.n + at, job.unit, place), scale, shift);
            }
            if (job.r) {
                const Lanes r = take<kFull>(job.r + t * job.r_step + place.at, place.count);
                x = job.n ? x + r : r;
            }
            if (job.x) give<kFull>(job.x + at, x, place.count, past_caches);
            const Lanes u = this->leak * v + x;
            const Mask fired = reaches(u, this->threshold);
            give<kFull>(job.spikes + at, where(fired, all(1)), place.count, past_caches);
            v = this->reset(u, fired);
        }
    }

    void take_up(const Place&, Sums&) const {}
};

template <size_t kSteps, bool kHard, bool kLast>
struct Backward : Scan<kSteps, kHard> {
    static constexpr size_t kMost = kSteps ? kSteps : kMostSteps;

    const AgmmBackward job;
    const size_t coefficients;
    const bool past_caches;
    const Lanes width, slope, through;

    using Sums = SumsOf<kLast, Floats, 2 * kMost>;

    Backward(const Shape& shape, const AgmmNeuron& neuron, const AgmmBackward& job)
        : Scan<kSteps, kHard>(shape, neuron),
          job(job),
          coefficients(shape.coefficients()),
          past_caches(shape.stream),
          width(all(neuron.width)),
          slope(all(1 / (neuron.width * neuron.width))),
          through(all(neuron.detach ? 0 : 1)) {}

    template <bool kFull>
    void run(const Place& place, Sums& sums, size_t channel) const {
        Lanes u[kMost], v = {};
#pragma GCC unroll 8
        for (size_t t = 0; t < this->steps; ++t) {
            u[t] = this->leak * v + take<kFull>(job.x + t * job.x_step + place.at, place.count);
            v = this->reset(u[t], reaches(u[t], this->threshold));
        }
        Lanes centre = {}, dv = {};
        if (job.n) centre = of_channel<kLast, kFull>(job.centre + place.channel, place.count);
#pragma GCC unroll 8
        for (size_t later = 0; later < this->steps; ++later) {
            const size_t t = this->steps - 1 - later, at = t * this->step + place.at;
            const Lanes du = step_back<kFull>(u[t], dv, at, place.count);
            dv = this->leak * du;
            const Lanes g = job.grad_x ? du + take<kFull>(job.grad_x + at, place.count) : du;
            give<kFull>(job.g + at, g, place.count, past_caches);
            if (job.n) {
                sums.add(2 * t, channel, g);
                sums.add(2 * t + 1, channel, g * (take_n<kLast, kFull>(job.n + at, job.unit, place) - centre));
            }
        }
    }

    // Gradient of the membrane u, of which dv is that of what the reset leaves (Eq. 1-4, 7).
    template <bool kFull>
    Lanes step_back(Lanes u, Lanes dv, size_t at, size_t count) const {
        const Lanes triangle = at_least_zero(width - magnitude(u - this->threshold)) * slope;
        Lanes ds = -through * (kHard ? u : this->threshold) * dv;
        if (job.grad_spikes) ds += take<kFull>(job.grad_spikes + at, count);
        return ds * triangle + (kHard ? unless(reaches(u, this->threshold), dv) : dv);
    }

    void take_up(const Place& line, Sums& sums) const {
        if (!job.n) return;
#pragma GCC unroll 8
        for (size_t t = 0; t < this->steps; ++t) {
            double* totals = job.sums + t * coefficients + line.coefficient;
            sums.move_to(totals, 2 * t, line.count);
            sums.move_to(totals + this->steps * coefficients, 2 * t + 1, line.count);
        }
    }
};

template <bool kLast>
struct Affine {
    using Sums = NoSums;

    const AgmmAffine job;
    const bool past_caches;

    template <bool kFull>
    void run(const Place& place, Sums&, size_t) const {
        const auto of = [&](const float* x) __attribute__((always_inline)) {
            return of_channel<kLast, kFull>(x, place.count);
        };
        const Lanes n = take_n<kLast, kFull>(job.n + place.at, job.unit, place) - of(job.centre + place.channel);
        const Lanes g = take<kFull>(job.g + place.at, place.count);
        Lanes dn = of(job.by_g + place.coefficient) * g + of(job.by_n + place.channel) * n +
                   of(job.rest + place.coefficient);
        if (job.unit) dn = dn * of(job.unit + place.channel);  // rounded as a product behind the convolution is
        give<kFull>(job.dn + place.at, dn, place.count, past_caches);
    }

    void take_up(const Place&, Sums&) const {}
};

void moments(const Shape& shape, const float* n, const float* unit, double* sums, Part part) {
    const size_t of_step = shape.coefficients();
    for (size_t t = 0; t < shape.steps; ++t) {
        const float* from = n + t * shape.step();
        double *to = sums + t * of_step, *squares = to + shape.steps * of_step;
        if (shape.last) {
            Moments<true> body{from, unit, to, squares};
            each_line<true>(body, shape, part);
        } else {
            Moments<false> body{from, unit, to, squares};
            each_line<false>(body, shape, part);
        }
    }
}

void affine(const Shape& shape, const AgmmAffine& job, Part part) {
    const size_t values = shape.step(), of_step = shape.coefficients();
    for (size_t t = 0; t < shape.steps; ++t) {
        const size_t at = t * values, coefficient = t * of_step;
        const AgmmAffine here = {job.g + at, job.n + at, job.unit, job.centre, job.by_g + coefficient,
                                 job.by_n,   job.rest + coefficient, job.dn + at};
        if (shape.last) {
            Affine<true> body{here, shape.stream};
            each_line<true>(body, shape, part);
        } else {
            Affine<false> body{here, shape.stream};
            each_line<false>(body, shape, part);
        }
    }
    if (shape.stream) end_stream();
}

template <template <size_t, bool, bool> class Pass, size_t kSteps, bool kHard, typename Job>
void scan_of(const Shape& shape, const AgmmNeuron& neuron, const Job& job, Part part) {
    if (shape.last) {
        Pass<kSteps, kHard, true> body(shape, neuron, job);
        each_line<true>(body, shape, part);
    } else {
        Pass<kSteps, kHard, false> body(shape, neuron, job);
        each_line<false>(body, shape, part);
    }
    if (shape.stream) end_stream();
}

template <template <size_t, bool, bool> class Pass, size_t kSteps, typename Job>
void scan_over(const Shape& shape, const AgmmNeuron& neuron, const Job& job, Part part) {
    if (neuron.hard) return scan_of<Pass, kSteps, true>(shape, neuron, job, part);
    scan_of<Pass, kSteps, false>(shape, neuron, job, part);
}

template <template <size_t, bool, bool> class Pass, typename Job>
void scan(const Shape& shape, const AgmmNeuron& neuron, const Job& job, Part part) {
    switch (shape.steps) {
        case 1: return scan_over<Pass, 1>(shape, neuron, job, part);
        case 2: return scan_over<Pass, 2>(shape, neuron, job, part);
        case 4: return scan_over<Pass, 4>(shape, neuron, job, part);
        case 8: return scan_over<Pass, 8>(shape, neuron, job, part);
        default: return scan_over<Pass, 0>(shape, neuron, job, part);
    }
}

void forward(const Shape& shape, const AgmmNeuron& neuron, const AgmmForward& job, Part part) {
    scan<Forward>(shape, neuron, job, part);
}

void backward(const Shape& shape, const AgmmNeuron& neuron, const AgmmBackward& job, Part part) {
    scan<Backward>(shape, neuron, job, part);
}

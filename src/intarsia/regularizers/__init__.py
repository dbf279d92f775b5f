"""The regularizers that keep modules composable: ITA, IEL, a plain L2, and the head's."""
